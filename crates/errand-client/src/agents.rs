//! Agents and their builds.

use std::future::ready;

use futures::{Stream, TryStreamExt as _};
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::client::Client;
use crate::error::Error;
use crate::id::{AgentId, BuildId};
use crate::names::names;
use crate::page::{List, Listed, Page, PageRequest};
use crate::reply::Reply;
use crate::setters::setters;
use crate::time::Timestamp;

names! {
    /// Whether new runs use a build.
    BuildStatus {
        /// New runs use it.
        Live = "live",
        /// It was live before.
        Historic = "historic",
        /// It was never live.
        Draft = "draft",
    }
}

/// A named configuration, which runs execute.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Agent {
    /// The agent's id.
    pub id: AgentId,
    /// The name, which several agents may have.
    pub name: String,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it, or its live build, last changed.
    pub updated_at: Option<Timestamp>,
    /// The newest build, which may be a draft. Only in lists.
    pub latest_build: Option<Build>,
    /// When its newest run was created. Only in lists.
    pub last_run_at: Option<Timestamp>,
}

impl Listed for Agent {
    const FIELD: &'static str = "agents";
}

/// A numbered snapshot of an agent's configuration, which never changes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Build {
    /// The build's id.
    pub id: BuildId,
    /// The agent that it belongs to.
    pub agent_id: AgentId,
    /// Counted from 1 for each agent.
    pub number: u64,
    /// The build's name.
    pub name: String,
    /// A note about it.
    pub description: Option<String>,
    /// Whether new runs use it.
    pub status: BuildStatus,
    /// `{"version": "v2", "data": {…}}`, as it was sent.
    pub config: Value,
    /// The build whose configuration was changed to make this one.
    pub parent_build_id: Option<BuildId>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its name, description or status last changed.
    pub updated_at: Option<Timestamp>,
}

impl Listed for Build {
    const FIELD: &'static str = "builds";
}

/// A remark about a setting that is accepted but may not do what its author expects.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Warning {
    /// The setting's path, such as `config.data.connections`.
    pub path: String,
    /// The problem and the remedy, for people.
    pub message: String,
}

/// An agent with the build that new runs use.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct AgentDetails {
    /// The agent.
    pub agent: Agent,
    /// The live build. `None` if the agent has no build, or only drafts.
    pub build: Option<Build>,
    /// Remarks about the build, if the call created it.
    #[serde(default)]
    pub warnings: Vec<Warning>,
}

/// A build, with remarks about it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct CreatedBuild {
    /// The build.
    pub build: Build,
    /// Remarks about its configuration.
    #[serde(default)]
    pub warnings: Vec<Warning>,
}

/// An agent to create.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct NewAgent {
    /// The name, at most 200 characters.
    pub name: String,
    /// The first build, which is live at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build: Option<NewBuild>,
}

impl NewAgent {
    /// An agent without a build.
    #[must_use]
    pub fn of(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            build: None,
        }
    }
}

setters! { NewAgent { build: NewBuild, } }

/// A build to create.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct NewBuild {
    /// The name, at most 200 characters.
    pub name: String,
    /// A note about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// `{"version": "v2", "data": {…}}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<Value>,
    /// The build whose configuration is copied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_build_id: Option<BuildId>,
    /// Whether new runs use the build only after it is promoted.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub draft: bool,
}

impl NewBuild {
    /// A build with this configuration: `{"version": "v2", "data": {…}}`.
    #[must_use]
    pub fn of(name: impl Into<String>, config: Value) -> Self {
        Self {
            name: name.into(),
            description: None,
            config: Some(config),
            source_build_id: None,
            draft: false,
        }
    }

    /// A build with the configuration of another one.
    #[must_use]
    pub fn copy_of(name: impl Into<String>, source: impl Into<BuildId>) -> Self {
        Self {
            name: name.into(),
            description: None,
            config: None,
            source_build_id: Some(source.into()),
            draft: false,
        }
    }

    /// Sets [`NewBuild::draft`](field@Self::draft).
    #[must_use]
    pub fn draft(mut self, draft: bool) -> Self {
        self.draft = draft;
        self
    }
}

setters! { NewBuild { description: String, } }

/// The changes that a promotion makes besides the status.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Promotion {
    /// A new name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision_name: Option<String>,
    /// A new note.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision_description: Option<String>,
}

impl Promotion {
    /// Only the status changes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

setters! { Promotion {
    revision_name: String,
    revision_description: String,
} }

#[derive(Deserialize)]
struct BuildBody {
    build: Build,
}

impl Client {
    /// Creates an agent. `agent`: a [`NewAgent`], or any value of its form, such as one from a file.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_agent(
        &self,
        agent: &(impl Serialize + ?Sized),
    ) -> Result<Reply<AgentDetails>, Error> {
        self.post(["agents"]).json(agent).send().await
    }

    /// One page of the agents, newest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn agents(&self, page: PageRequest) -> Result<Reply<Page<Agent>>, Error> {
        self.page(&List::at(["agents"]), page).await
    }

    /// All agents, newest first.
    pub fn all_agents(&self) -> impl Stream<Item = Result<Agent, Error>> + Send + use<> {
        self.all(List::at(["agents"]))
    }

    /// The agents with this name.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn agents_named(&self, name: &str) -> Result<Vec<Agent>, Error> {
        self.all_agents()
            .try_filter(|agent| ready(agent.name == name))
            .try_collect()
            .await
    }

    /// An agent and the build that new runs use.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn agent(&self, agent: &AgentId) -> Result<Reply<AgentDetails>, Error> {
        self.get(["agents", agent.as_str()]).send().await
    }

    /// Renames an agent.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn rename_agent(
        &self,
        agent: &AgentId,
        name: &str,
    ) -> Result<Reply<AgentDetails>, Error> {
        self.call(Method::PATCH, ["agents", agent.as_str()])
            .json(&serde_json::json!({ "name": name }))
            .send()
            .await
    }

    /// Deletes an agent. Its runs continue and stay readable.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_agent(&self, agent: &AgentId) -> Result<(), Error> {
        self.delete(["agents", agent.as_str()]).send_empty().await?;
        Ok(())
    }

    /// One page of an agent's builds, newest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn builds(
        &self,
        agent: &AgentId,
        page: PageRequest,
    ) -> Result<Reply<Page<Build>>, Error> {
        self.page(&builds(agent), page).await
    }

    /// All builds of an agent, newest first.
    pub fn all_builds(
        &self,
        agent: &AgentId,
    ) -> impl Stream<Item = Result<Build, Error>> + Send + use<> {
        self.all(builds(agent))
    }

    /// Creates a build. `build`: a [`NewBuild`], or any value of its form, such as one from a file.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_build(
        &self,
        agent: &AgentId,
        build: &(impl Serialize + ?Sized),
    ) -> Result<Reply<CreatedBuild>, Error> {
        let path = ["agents", agent.as_str(), "revisions"];
        self.post(path).json(build).send().await
    }

    /// A build with its configuration.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn build(&self, build: &BuildId) -> Result<Reply<Build>, Error> {
        let path = ["revisions", build.as_str()];
        let reply = self.get(path).send::<BuildBody>().await?;
        Ok(reply.map(|body| body.build))
    }

    /// Makes a build the live one, which new runs use.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn promote_build(
        &self,
        build: &BuildId,
        promotion: &Promotion,
    ) -> Result<Reply<()>, Error> {
        let path = ["revisions", build.as_str(), "promote"];
        self.post(path).json(promotion).send_empty().await
    }
}

fn builds(agent: &AgentId) -> List {
    List::at(["agents", agent.as_str(), "builds"])
}
