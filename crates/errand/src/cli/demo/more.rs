//! Example data for the pages of a demo that is kept running: assignments of each kind, runs in each state.

use anyhow::Result;
use serde_json::{Value, json};

use super::super::assignment;
use super::{ASSIGNMENT, INVOICES, INVOICES_PATH};
use crate::client::Client;

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

async fn made(client: &Client, agent: &Value) -> Result<String> {
    Ok(client.create_agent(agent).await?.value.agent.id.to_string())
}

async fn start(
    client: &Client,
    agent: &str,
    message: &str,
    file: Option<&'static str>,
) -> Result<()> {
    let mut sandbox_id = Value::Null;
    if let Some(file) = file {
        let sandbox = client.create_sandbox().await?.value.sandbox_id;
        client
            .upload(&sandbox, INVOICES_PATH, file.len() as u64, file.into())
            .await?;
        sandbox_id = json!(sandbox);
    }
    let body = json!({ "agent_id": agent, "message": message, "sandbox_id": sandbox_id });
    client.start_run(&body).await?;
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
