use errand_core::time::Timestamp;
use serde_json::json;

use super::*;
use crate::accounts::fixture::{Fixture, assert_replayed};

const ALL: PageQuery = PageQuery {
    limit: 100,
    offset: 0,
};

impl Fixture {
    fn new_agent(&self, name: &str, build: Option<NewBuild>) -> NewAgent {
        NewAgent {
            team: self.team,
            id: self.ids.agent(self.now),
            name: name.to_owned(),
            build,
            created_by: self.owner,
            now: self.now,
        }
    }

    fn new_build(&self, name: &str) -> NewBuild {
        NewBuild {
            id: self.ids.build(self.now),
            name: name.to_owned(),
            description: None,
            config: json!({"version": "v2", "data": {"unknown": [1, null]}}),
            created_by: self.owner,
            draft: false,
            warnings: Vec::new(),
        }
    }

    async fn made(&self, new: NewAgent) -> (Agent, Option<Build>) {
        self.store
            .create_agent(new, Idempotent::not_recorded())
            .await
            .unwrap()
            .executed()
            .unwrap()
    }

    async fn built(&self, agent: AgentId, name: &str, now: Timestamp) -> Build {
        let new = self.new_build(name);
        self.store
            .create_build(self.team, agent, new, now, Idempotent::not_recorded())
            .await
            .unwrap()
            .executed()
            .unwrap()
    }

    async fn changed(&self, build: BuildId, change: BuildChange, now: Timestamp) -> Result<Build> {
        self.store
            .update_build(
                self.team,
                build,
                change,
                (self.owner, now),
                Idempotent::not_recorded(),
            )
            .await?
            .executed()
    }

    async fn updated_at(&self, agent: AgentId) -> Timestamp {
        self.store
            .agent(self.team, agent)
            .await
            .unwrap()
            .0
            .updated_at
    }
}

#[tokio::test]
async fn an_agent_is_given_back_as_it_was_made() {
    let f = Fixture::new().await;
    let bare = f.made(f.new_agent("bare", None)).await;
    assert_eq!(bare.1, None);
    assert_eq!(f.store.agent(f.team, bare.0.id).await.unwrap(), bare);

    let (agent, build) = f
        .made(f.new_agent("built", Some(f.new_build("first"))))
        .await;
    let build = build.unwrap();
    assert_eq!(
        (build.number, build.agent_id, build.created_by),
        (1, agent.id, Some(f.owner))
    );
    assert_eq!(
        f.store.agent(f.team, agent.id).await.unwrap(),
        (agent, Some(build.clone()))
    );
    assert_eq!(f.store.build(f.team, build.id).await.unwrap(), build);
}

#[tokio::test]
async fn builds_are_numbered_in_order_and_the_latest_is_shown() {
    let f = Fixture::new().await;
    let (agent, _) = f.made(f.new_agent("a", None)).await;
    let (other, _) = f.made(f.new_agent("b", Some(f.new_build("b1")))).await;
    for (number, name) in (1..).zip(["one", "two", "three"]) {
        let later = f.now.plus_ms(number);
        let build = f.built(agent.id, name, later).await;
        assert_eq!(build.number, number);
        let (shown, latest) = f.store.agent(f.team, agent.id).await.unwrap();
        assert_eq!((shown.updated_at, latest), (later, Some(build)));
    }
    let page = f
        .store
        .list_builds(
            f.team,
            agent.id,
            PageQuery {
                limit: 2,
                offset: 1,
            },
        )
        .await
        .unwrap();
    let numbers: Vec<_> = page.items.iter().map(|build| build.number).collect();
    assert_eq!((numbers, page.total), (vec![2, 1], 3));
    assert_eq!(
        f.store
            .list_builds(f.team, other.id, ALL)
            .await
            .unwrap()
            .total,
        1
    );
}

#[tokio::test]
async fn agents_are_listed_newest_first_with_their_latest_builds() {
    let f = Fixture::new().await;
    for n in 0..4_u64 {
        let now = f.now.plus_ms(n / 2);
        let build = (n % 2 == 0).then(|| f.new_build("first"));
        let (agent, _) = f
            .made(NewAgent {
                now,
                ..f.new_agent(&format!("a{n}"), build)
            })
            .await;
        if n == 2 {
            f.built(agent.id, "second", now).await;
        }
    }
    let page = f
        .store
        .list_agents(
            f.team,
            PageQuery {
                limit: 3,
                offset: 0,
            },
        )
        .await
        .unwrap();
    let shown: Vec<_> = page
        .items
        .iter()
        .map(|(a, b)| (a.name.as_str(), b.as_ref().map(|b| b.number)))
        .collect();
    assert_eq!(
        (shown, page.total),
        (vec![("a3", None), ("a2", Some(2)), ("a1", None)], 4)
    );
    assert_eq!(
        f.store.list_agents(f.other_team, ALL).await.unwrap(),
        Page {
            items: Vec::new(),
            total: 0
        }
    );
}

#[tokio::test]
async fn a_deleted_agent_is_gone_but_for_its_builds() {
    let f = Fixture::new().await;
    let (agent, build) = f.made(f.new_agent("a", Some(f.new_build("first")))).await;
    let build = build.unwrap();
    let first = f
        .store
        .delete_agent(f.team, agent.id, f.now, f.once("d", 1))
        .await
        .unwrap();
    let second = f
        .store
        .delete_agent(f.team, agent.id, f.now, f.once("d", 1))
        .await
        .unwrap();
    assert_replayed(first, second);

    let id = agent.id;
    assert!(matches!(
        f.store.agent(f.team, id).await,
        Err(StoreError::NotFound)
    ));
    assert!(matches!(
        f.store.list_builds(f.team, id, ALL).await,
        Err(StoreError::NotFound)
    ));
    let again = f
        .store
        .delete_agent(f.team, id, f.now, Idempotent::not_recorded())
        .await;
    assert!(matches!(again, Err(StoreError::NotFound)));
    let renamed = f
        .store
        .rename_agent(
            f.team,
            id,
            "b".to_owned(),
            (f.owner, f.now),
            Idempotent::not_recorded(),
        )
        .await;
    assert!(matches!(renamed, Err(StoreError::NotFound)));
    let built = f
        .store
        .create_build(
            f.team,
            id,
            f.new_build("x"),
            f.now,
            Idempotent::not_recorded(),
        )
        .await;
    assert!(matches!(built, Err(StoreError::NotFound)));
    let change = BuildChange {
        name: Some("x".to_owned()),
        description: None,
        promote: false,
    };
    assert!(matches!(
        f.changed(build.id, change, f.now).await,
        Err(StoreError::NotFound)
    ));
    assert_eq!(f.store.list_agents(f.team, ALL).await.unwrap().total, 0);
    assert_eq!(f.store.build(f.team, build.id).await.unwrap(), build);
}

#[tokio::test]
async fn another_teams_agents_and_builds_are_not_found() {
    let f = Fixture::new().await;
    let made = f.made(f.new_agent("a", Some(f.new_build("first")))).await;
    let (agent, build, team) = (made.0.id, made.1.as_ref().unwrap().id, f.other_team);
    let before = f.changes().await;
    assert!(matches!(
        f.store.agent(team, agent).await,
        Err(StoreError::NotFound)
    ));
    assert!(matches!(
        f.store.build(team, build).await,
        Err(StoreError::NotFound)
    ));
    assert!(matches!(
        f.store.list_builds(team, agent, ALL).await,
        Err(StoreError::NotFound)
    ));
    let renamed = f
        .store
        .rename_agent(
            team,
            agent,
            "b".to_owned(),
            (f.owner, f.now),
            f.once("1", 1),
        )
        .await;
    assert!(matches!(renamed, Err(StoreError::NotFound)));
    let deleted = f
        .store
        .delete_agent(team, agent, f.now, f.once("2", 1))
        .await;
    assert!(matches!(deleted, Err(StoreError::NotFound)));
    let built = f
        .store
        .create_build(team, agent, f.new_build("x"), f.now, f.once("3", 1))
        .await;
    assert!(matches!(built, Err(StoreError::NotFound)));
    let change = BuildChange {
        name: Some("x".to_owned()),
        description: Some(None),
        promote: false,
    };
    let updated = f
        .store
        .update_build(team, build, change, (f.owner, f.now), f.once("4", 1))
        .await;
    assert!(matches!(updated, Err(StoreError::NotFound)));
    assert_eq!(
        f.changes().await,
        before,
        "a refused operation writes nothing and is not recorded"
    );
    assert_eq!(f.store.agent(f.team, agent).await.unwrap(), made);
}

#[tokio::test]
async fn a_repeat_makes_one_agent_and_one_build() {
    let f = Fixture::new().await;
    let new = || f.new_agent("a", Some(f.new_build("first")));
    let first = f.store.create_agent(new(), f.once("a", 1)).await.unwrap();
    let second = f.store.create_agent(new(), f.once("a", 1)).await.unwrap();
    let (agent, _) = assert_replayed(first, second);
    assert!(matches!(
        f.store.create_agent(new(), f.once("a", 2)).await,
        Err(StoreError::KeyReused)
    ));
    assert_eq!(f.store.list_agents(f.team, ALL).await.unwrap().total, 1);

    let build = |body| {
        f.store.create_build(
            f.team,
            agent.id,
            f.new_build("second"),
            f.now,
            f.once("b", body),
        )
    };
    let (first, second) = (build(1).await.unwrap(), build(1).await.unwrap());
    assert_eq!(assert_replayed(first, second).number, 2);
    assert!(matches!(build(2).await, Err(StoreError::KeyReused)));
    assert_eq!(
        f.store
            .list_builds(f.team, agent.id, ALL)
            .await
            .unwrap()
            .total,
        2
    );
}

#[tokio::test]
async fn a_new_name_moves_updated_at() {
    let f = Fixture::new().await;
    let made = f.made(f.new_agent("old", Some(f.new_build("first")))).await;
    let later = f.now.plus_ms(5);
    let rename = || {
        f.store.rename_agent(
            f.team,
            made.0.id,
            "new".to_owned(),
            (f.owner, later),
            f.once("r", 1),
        )
    };
    let (first, second) = (rename().await.unwrap(), rename().await.unwrap());
    let (agent, build) = assert_replayed(first, second);
    assert_eq!(
        (agent.name.as_str(), agent.created_at, agent.updated_at),
        ("new", f.now, later)
    );
    assert_eq!(agent.updated_by, made.0.created_by);
    assert_eq!(build, made.1);
    assert_eq!(
        f.store.agent(f.team, agent.id).await.unwrap(),
        (agent, build)
    );
}

#[tokio::test]
async fn of_a_build_name_and_description_change() {
    let f = Fixture::new().await;
    let (agent, build) = f.made(f.new_agent("a", Some(f.new_build("first")))).await;
    let mut build = build.unwrap();
    let (t1, t2) = (f.now.plus_ms(1), f.now.plus_ms(2));

    let nothing = f
        .changed(build.id, BuildChange::default(), t1)
        .await
        .unwrap();
    assert_eq!(
        (nothing, f.updated_at(agent.id).await),
        (build.clone(), f.now)
    );

    let described = BuildChange {
        name: None,
        description: Some(Some("why".to_owned())),
        promote: false,
    };
    build.description = Some("why".to_owned());
    build.updated_at = t1;
    assert_eq!(f.changed(build.id, described, t1).await.unwrap(), build);
    assert_eq!(f.updated_at(agent.id).await, t1);

    let renamed = BuildChange {
        name: Some("better".to_owned()),
        description: None,
        promote: false,
    };
    build.name = "better".to_owned();
    assert_eq!(f.changed(build.id, renamed, t1).await.unwrap(), build);

    // The agent does not show an older build.
    f.built(agent.id, "second", t1).await;
    build.description = None;
    build.state = BuildState::Historic;
    build.updated_at = t2;
    let bare = BuildChange {
        name: None,
        description: Some(None),
        promote: false,
    };
    assert_eq!(f.changed(build.id, bare, t2).await.unwrap(), build);
    assert_eq!(f.updated_at(agent.id).await, t1);
    assert_eq!(f.store.build(f.team, build.id).await.unwrap(), build);
}

#[tokio::test]
async fn a_config_that_cannot_be_read_is_corrupt() {
    let f = Fixture::new().await;
    let (agent, build) = f.made(f.new_agent("a", Some(f.new_build("first")))).await;
    f.sql("UPDATE builds SET config = '{'").await;
    let found = f.store.build(f.team, build.unwrap().id).await;
    assert!(
        matches!(
            found,
            Err(StoreError::Corrupt {
                table: "builds",
                column: "config",
                ..
            })
        ),
        "{found:?}"
    );
    assert!(matches!(
        f.store.agent(f.team, agent.id).await,
        Err(StoreError::Corrupt { .. })
    ));
}
