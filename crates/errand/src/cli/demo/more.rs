//! Example data for the pages of a demo that is kept running: assignments of each kind, runs in each state.

use anyhow::Result;
use errand_client::{AgentId, Client, NewRun};
use serde_json::{Value, json};

use super::super::assignment;
use super::{ASSIGNMENT, INVOICES, INVOICES_PATH};

const ASK_AND_WAIT: &str = include_str!("../../../../../examples/ask-and-wait.yaml");
/// Invoices below the limit, which need no approval.
const SMALL: &str = "number,supplier,due,amount_eur\nA-1,Paper & Pens,2026-12-01,80\nA-2,Water Works,2026-12-03,42\n";

/// Creates the example data. Runs that wait for a person keep waiting.
pub(super) async fn fill(client: &Client) -> Result<()> {
    let invoices = made(client, &assignment::parse(ASSIGNMENT)?).await?;
    for month in ["August", "September", "October"] {
        let message = format!("Pay the small invoices of {month}.");
        start(client, &invoices, &message, Some(SMALL)).await?;
    }
    start(
        client,
        &invoices,
        "Pay the invoices of November.",
        Some(INVOICES),
    )
    .await?;
    start(client, &invoices, "Pay the invoices of December.", None).await?;
    let asks = made(client, &assignment::parse(ASK_AND_WAIT)?).await?;
    start(client, &asks, "The order of Friday.", None).await?;
    let letter = made(client, &letter()).await?;
    start(
        client,
        &letter,
        "Where is my parcel?\nIt should have come last week.",
        None,
    )
    .await?;
    start(client, &letter, "Thank you!", None).await?;
    Ok(())
}

async fn made(client: &Client, agent: &Value) -> Result<AgentId> {
    Ok(client.create_agent(agent).await?.into_value().agent.id)
}

async fn start(
    client: &Client,
    agent: &AgentId,
    message: &str,
    file: Option<&'static str>,
) -> Result<()> {
    let mut new = NewRun::of(agent.clone()).message(message);
    if let Some(file) = file {
        let sandbox = client.create_sandbox().await?.into_value().sandbox_id;
        client.upload(&sandbox, INVOICES_PATH, file).await?;
        new.sandbox_id = Some(sandbox);
    }
    client.start_run(&new).await?;
    Ok(())
}

/// An assignment whose tool has the policy `ask`.
fn letter() -> Value {
    json!({
        "name": "Answer letters",
        "build": { "name": "first", "config": { "version": "v2", "data": {
            "models": { "agent": { "model": "builtin/playbook" } },
            "input": "# Letters\n\nAnswer **politely** and in the writer's own language.\n\n- Be brief.\n- Promise nothing that costs money.",
            "tools": { "read_file": "allow", "write_file": "ask", "ask_human": "allow" },
            "limits": { "steps": 40, "cost_usd": 2.5 },
            "playbook": { "steps": [
                { "say": "The letter says:\n\n> {{ message }}\n\nI have **an answer** for it." },
                { "tool": "write_file", "with": { "path": "/workspace/answer.md", "content": "# Your letter\n\nThank you for writing. We look into it today.\n" } },
                { "finish": "The answer is in /workspace/answer.md." },
            ] },
        } } },
    })
}
