mod joining;
mod people;
mod sessions;

use errand_core::id::{IdGen, UserId};
use errand_core::role::Role;
use errand_core::time::Timestamp;

use super::fixture::{Fixture, SECRET, assert_replayed, empty_store};
use super::*;
use crate::model::PageQuery;

const ALL: PageQuery = PageQuery {
    limit: 100,
    offset: 0,
};

impl Fixture {
    fn new_key(&self, name: &str, hash: u8) -> NewApiKey {
        NewApiKey {
            id: self.ids.api_key(self.now),
            team: self.team,
            created_by: self.owner,
            name: name.to_owned(),
            prefix: "dv_abcd".to_owned(),
            hash: [hash; 32],
            expires_at: None,
            not_after: None,
            now: self.now,
        }
    }

    async fn key(&self, new: NewApiKey) -> Result<ApiKey> {
        self.store
            .create_api_key(new, Idempotent::not_recorded())
            .await?
            .executed()
    }

    async fn caller(&self, hash: u8, now: Timestamp) -> Option<Caller> {
        self.store
            .caller_by_key_hash([hash; 32], now)
            .await
            .unwrap()
    }

    async fn user(&self, email: &str) -> UserId {
        let id = self.ids.user(self.now);
        self.store
            .create_user(NewUser {
                id,
                email: email.to_owned(),
                now: self.now,
            })
            .await
            .unwrap();
        id
    }

    /// Creates a member of the first team.
    async fn member(&self, email: &str, role: Role) -> UserId {
        let user = self.user(email).await;
        self.store
            .add_member(self.team, user, role, Role::Owner, self.now)
            .await
            .unwrap();
        user
    }

    async fn last_used(&self) -> Option<Timestamp> {
        self.store
            .list_api_keys(self.team, ALL)
            .await
            .unwrap()
            .items[0]
            .last_used_at
    }
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T>, part: &str) {
    match result {
        Err(StoreError::Refused(why) | StoreError::Forbidden(why)) if why.contains(part) => {}
        other => panic!("not refused for {part:?}: {other:?}"),
    }
}

#[tokio::test]
async fn a_key_has_the_role_that_its_creator_has_now() {
    let f = Fixture::new().await;
    let ann = f.member("ann@example.com", Role::Admin).await;
    let key = f
        .key(NewApiKey {
            created_by: ann,
            ..f.new_key("ci", 1)
        })
        .await
        .unwrap();

    let caller = f.caller(1, f.now).await.unwrap();
    let expected = Caller {
        team: f.team,
        user: ann,
        api_key: key.id,
        api_key_name: key.name.clone(),
        role: Role::Admin,
        expires_at: None,
        last_used_at: None,
    };
    assert_eq!(caller, expected);
    assert_eq!(f.caller(2, f.now).await, None, "an unknown hash");

    f.store
        .set_role(f.team, ann, Role::Member, Role::Owner)
        .await
        .unwrap();
    assert_eq!(f.caller(1, f.now).await.unwrap().role, Role::Member);

    f.store
        .remove_member(f.team, ann, Role::Admin)
        .await
        .unwrap();
    assert_eq!(f.caller(1, f.now).await, None, "removed");
    f.store
        .add_member(f.team, ann, Role::Member, Role::Admin, f.now)
        .await
        .unwrap();
    assert_eq!(
        f.caller(1, f.now).await,
        None,
        "joined again, without the old keys"
    );

    let again = NewApiKey {
        created_by: ann,
        ..f.new_key("again", 2)
    };
    f.key(again).await.unwrap();
    assert!(f.caller(2, f.now).await.is_some());
    f.store.disable_user(ann, f.now).await.unwrap();
    assert_eq!(f.caller(2, f.now).await, None, "disabled");
}

#[tokio::test]
async fn a_key_ends_at_its_moment_and_no_later_than_its_maker() {
    let f = Fixture::new().await;
    let (soon, late) = (f.now.plus_ms(10), f.now.plus_ms(20));
    let cases = [
        (None, None, None),
        (Some(soon), None, Some(soon)),
        (None, Some(soon), Some(soon)),
        (Some(late), Some(soon), Some(soon)),
        (Some(soon), Some(late), Some(soon)),
    ];
    for (hash, (expires_at, not_after, end)) in (1..).zip(cases) {
        let key = f
            .key(NewApiKey {
                expires_at,
                not_after,
                ..f.new_key("k", hash)
            })
            .await
            .unwrap();
        assert_eq!(key.expires_at, end);
        assert!(f.caller(hash, f.now.plus_ms(9)).await.is_some());
        assert_eq!(
            f.caller(hash, f.now.plus_ms(10)).await.is_none(),
            end.is_some()
        );
    }
    let over = f
        .key(NewApiKey {
            expires_at: Some(f.now),
            ..f.new_key("k", 99)
        })
        .await;
    assert!(
        matches!(
            over,
            Err(StoreError::Invalid {
                field: "expires_at",
                ..
            })
        ),
        "{over:?}"
    );
    assert_eq!(f.store.list_api_keys(f.team, ALL).await.unwrap().total, 5);
}

#[tokio::test]
async fn a_key_is_made_only_for_somebody_of_the_team() {
    let f = Fixture::new().await;
    let ann = f.member("ann@example.com", Role::Admin).await;
    f.store.disable_user(ann, f.now).await.unwrap();
    for created_by in [f.other_owner, ann, f.ids.user(f.now)] {
        let refused = f
            .key(NewApiKey {
                created_by,
                ..f.new_key("k", 1)
            })
            .await;
        assert!(matches!(refused, Err(StoreError::NotFound)), "{refused:?}");
    }
}

#[tokio::test]
async fn keys_are_listed_newest_first_and_by_page() {
    let f = Fixture::new().await;
    for n in 1..=5 {
        let now = f.now.plus_ms(u64::from(n) / 2);
        f.key(NewApiKey {
            now,
            ..f.new_key(&format!("k{n}"), n)
        })
        .await
        .unwrap();
    }
    let page = f
        .store
        .list_api_keys(
            f.team,
            PageQuery {
                limit: 2,
                offset: 1,
            },
        )
        .await
        .unwrap();
    let names: Vec<_> = page.items.iter().map(|key| key.name.as_str()).collect();
    assert_eq!((names, page.total), (vec!["k4", "k3"], 5));
    let beyond = f
        .store
        .list_api_keys(
            f.team,
            PageQuery {
                limit: 2,
                offset: 9,
            },
        )
        .await
        .unwrap();
    assert_eq!(
        beyond,
        Page {
            items: Vec::new(),
            total: 5
        }
    );
    assert_eq!(
        f.store
            .list_api_keys(f.other_team, ALL)
            .await
            .unwrap()
            .total,
        0
    );
}

#[tokio::test]
async fn a_repeat_makes_one_key_and_another_body_is_refused() {
    let f = Fixture::new().await;
    let first = f
        .store
        .create_api_key(f.new_key("k", 1), f.once("a", 1))
        .await
        .unwrap();
    let second = f
        .store
        .create_api_key(f.new_key("k", 2), f.once("a", 1))
        .await
        .unwrap();
    let key = assert_replayed(first, second);
    assert_eq!(
        f.store.list_api_keys(f.team, ALL).await.unwrap().items,
        [key]
    );

    let other = f
        .store
        .create_api_key(f.new_key("k", 3), f.once("a", 2))
        .await;
    assert!(matches!(other, Err(StoreError::KeyReused)), "{other:?}");
    assert_eq!(f.store.list_api_keys(f.team, ALL).await.unwrap().total, 1);
}

#[tokio::test]
async fn a_deleted_key_works_no_more() {
    let f = Fixture::new().await;
    let key = f.key(f.new_key("k", 1)).await.unwrap().id;
    let foreign = f
        .store
        .delete_api_key(f.other_team, key, f.now, Idempotent::not_recorded())
        .await;
    assert!(matches!(foreign, Err(StoreError::NotFound)), "{foreign:?}");
    assert!(f.caller(1, f.now).await.is_some());

    let first = f
        .store
        .delete_api_key(f.team, key, f.now, f.once("d", 1))
        .await
        .unwrap();
    let second = f
        .store
        .delete_api_key(f.team, key, f.now, f.once("d", 1))
        .await
        .unwrap();
    assert_replayed(first, second);
    assert_eq!(f.caller(1, f.now).await, None);
    let again = f
        .store
        .delete_api_key(f.team, key, f.now, Idempotent::not_recorded())
        .await;
    assert!(matches!(again, Err(StoreError::NotFound)), "{again:?}");
}

#[tokio::test]
async fn the_last_use_is_kept_to_the_minute() {
    let f = Fixture::new().await;
    let key = f.key(f.new_key("k", 1)).await.unwrap().id;
    f.store.touch_key(key, f.now).await.unwrap();
    assert_eq!(f.last_used().await, Some(f.now));

    let before = f.changes().await;
    f.store.touch_key(key, f.now.plus_ms(59_999)).await.unwrap();
    f.store
        .touch_key(f.ids.api_key(f.now), f.now)
        .await
        .unwrap();
    assert_eq!(f.changes().await, before);
    assert_eq!(f.last_used().await, Some(f.now));

    f.store.touch_key(key, f.now.plus_ms(60_000)).await.unwrap();
    assert_eq!(f.last_used().await, Some(f.now.plus_ms(60_000)));
    assert_eq!(
        f.caller(1, f.now).await.unwrap().last_used_at,
        Some(f.now.plus_ms(60_000))
    );
}

#[tokio::test]
async fn an_empty_server_gets_a_team_and_an_owner_once() {
    let (ids, now) = (
        IdGen::new([2; 32]),
        Timestamp::from_millis(1_800_000_000_000),
    );
    let (store, _dir) = empty_store(&ids, now);
    let new = Bootstrap {
        team: ids.team(now),
        owner: ids.user(now),
        secret: SECRET.to_owned(),
        now,
    };
    let made = store.bootstrap(new.clone()).await.unwrap();
    assert_eq!(
        made,
        Bootstrapped {
            team: new.team,
            owner: new.owner,
            created: true
        }
    );
    let team = Team {
        id: new.team,
        name: "default".to_owned(),
        created_at: now,
    };
    assert_eq!(store.teams().await.unwrap(), [team]);

    let later = Bootstrap {
        team: ids.team(now),
        owner: ids.user(now),
        secret: "whsec_x".to_owned(),
        now,
    };
    assert_eq!(
        store.bootstrap(later).await.unwrap(),
        Bootstrapped {
            created: false,
            ..made
        }
    );
    assert_eq!(store.webhook_secret(new.team).await.unwrap(), SECRET);
    assert_eq!(store.password_hash(new.owner).await.unwrap(), None);
}

#[tokio::test]
async fn a_team_has_its_own_sealed_secret_and_name() {
    let f = Fixture::new().await;
    assert_eq!(f.store.webhook_secret(f.team).await.unwrap(), SECRET);
    assert_eq!(
        f.store.webhook_secret(f.other_team).await.unwrap(),
        "whsec_other"
    );
    assert!(matches!(
        f.store.webhook_secret(f.ids.team(f.now)).await,
        Err(StoreError::NotFound)
    ));
    let clear = f
        .store
        .read(|conn| {
            let sql = "SELECT count(*) FROM teams WHERE instr(webhook_secret, CAST('whsec_' AS BLOB)) > 0";
            Ok(conn.query_row(sql, [], |row| row.get::<_, i64>(0))?)
        })
        .await;
    assert_eq!(clear.unwrap(), 0);

    let new = |name: &str, owner| NewTeam {
        id: f.ids.team(f.now),
        name: name.to_owned(),
        owner,
        secret: SECRET.to_owned(),
        now: f.now,
    };
    let taken = f.store.create_team(new("other", f.owner)).await;
    assert!(matches!(taken, Err(StoreError::Conflict(_))), "{taken:?}");
    let nobody = f.store.create_team(new("third", f.ids.user(f.now))).await;
    assert!(matches!(nobody, Err(StoreError::NotFound)), "{nobody:?}");
    let names: Vec<_> = f
        .store
        .teams()
        .await
        .unwrap()
        .into_iter()
        .map(|team| team.name)
        .collect();
    assert_eq!(names, ["default", "other"]);
}

#[tokio::test]
async fn a_swapped_secret_does_not_open() {
    let f = Fixture::new().await;
    f.sql(
        "UPDATE teams SET webhook_secret = (SELECT webhook_secret FROM teams WHERE name = 'other')",
    )
    .await;
    assert!(matches!(
        f.store.webhook_secret(f.team).await,
        Err(StoreError::Seal(_))
    ));
}

#[tokio::test]
async fn only_owners_make_and_unmake_owners() {
    let f = Fixture::new().await;
    let ann = f.user("ann@example.com").await;
    for by in [Role::Member, Role::Admin] {
        assert_refused(
            f.store
                .add_member(f.team, ann, Role::Owner, by, f.now)
                .await,
            "only an owner",
        );
    }
    f.store
        .add_member(f.team, ann, Role::Admin, Role::Admin, f.now)
        .await
        .unwrap();
    assert_refused(
        f.store
            .set_role(f.team, ann, Role::Owner, Role::Admin)
            .await,
        "only an owner",
    );
    assert_refused(
        f.store
            .set_role(f.team, f.owner, Role::Member, Role::Admin)
            .await,
        "only an owner",
    );
    assert_refused(
        f.store.remove_member(f.team, f.owner, Role::Admin).await,
        "only an owner",
    );

    f.store
        .set_role(f.team, ann, Role::Owner, Role::Owner)
        .await
        .unwrap();
    f.store
        .set_role(f.team, ann, Role::Owner, Role::Admin)
        .await
        .unwrap();
    f.store
        .set_role(f.team, f.owner, Role::Member, Role::Owner)
        .await
        .unwrap();
}

#[tokio::test]
async fn the_last_owner_stays() {
    let f = Fixture::new().await;
    let ann = f.member("ann@example.com", Role::Admin).await;
    assert_refused(
        f.store
            .set_role(f.team, f.owner, Role::Admin, Role::Owner)
            .await,
        "last owner",
    );
    assert_refused(
        f.store.remove_member(f.team, f.owner, Role::Owner).await,
        "last owner",
    );
    assert_refused(f.store.disable_user(f.owner, f.now).await, "last owner");
    f.store
        .set_role(f.team, f.owner, Role::Owner, Role::Owner)
        .await
        .unwrap();

    // A disabled owner does not count.
    f.store
        .set_role(f.team, ann, Role::Owner, Role::Owner)
        .await
        .unwrap();
    f.store.disable_user(ann, f.now).await.unwrap();
    f.store.disable_user(ann, f.now).await.unwrap();
    assert_refused(
        f.store.remove_member(f.team, f.owner, Role::Owner).await,
        "last owner",
    );
    assert_refused(f.store.disable_user(f.owner, f.now).await, "last owner");

    let ben = f.member("ben@example.com", Role::Owner).await;
    f.store
        .remove_member(f.team, f.owner, Role::Owner)
        .await
        .unwrap();
    let made = f
        .store
        .bootstrap(Bootstrap {
            team: f.team,
            owner: f.owner,
            secret: SECRET.to_owned(),
            now: f.now,
        })
        .await;
    assert_eq!(
        made.unwrap(),
        Bootstrapped {
            team: f.team,
            owner: ben,
            created: false
        }
    );
}

#[tokio::test]
async fn members_are_found_in_their_team_only() {
    let f = Fixture::new().await;
    let ann = f.member("ann@example.com", Role::Member).await;
    let twice = f
        .store
        .add_member(f.team, ann, Role::Admin, Role::Owner, f.now)
        .await;
    assert!(matches!(twice, Err(StoreError::Conflict(_))), "{twice:?}");

    let nobody = f.ids.user(f.now);
    let results = [
        f.store
            .set_role(f.other_team, ann, Role::Admin, Role::Owner)
            .await,
        f.store.remove_member(f.other_team, ann, Role::Owner).await,
        f.store
            .add_member(f.ids.team(f.now), ann, Role::Member, Role::Owner, f.now)
            .await,
        f.store
            .add_member(f.team, nobody, Role::Member, Role::Owner, f.now)
            .await,
        f.store.disable_user(nobody, f.now).await.map(drop),
    ];
    for result in results {
        assert!(matches!(result, Err(StoreError::NotFound)), "{result:?}");
    }
}

#[tokio::test]
async fn a_role_that_cannot_be_read_is_corrupt() {
    let f = Fixture::new().await;
    f.key(f.new_key("k", 1)).await.unwrap();
    f.sql("PRAGMA ignore_check_constraints = ON; UPDATE memberships SET role = 'king'; PRAGMA ignore_check_constraints = OFF").await;
    let caller = f.store.caller_by_key_hash([1; 32], f.now).await;
    assert!(
        matches!(
            caller,
            Err(StoreError::Corrupt {
                table: "memberships",
                column: "role",
                ..
            })
        ),
        "{caller:?}"
    );
}
