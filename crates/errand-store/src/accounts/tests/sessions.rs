//! Sessions: how they begin and end.

use super::*;
use crate::accounts::Session;

const HOUR_MS: u64 = 3_600_000;
const HASH: &str = "$argon2id$v=19$x";

impl Fixture {
    async fn session(&self, token: u8, now: Timestamp) -> Option<Session> {
        self.store.session([token; 32], now).await.unwrap()
    }
}

#[tokio::test]
async fn a_session_lives_while_it_is_used_and_thirty_days_at_most() {
    let f = Fixture::new().await;
    f.store.open_session(f.owner, [1; 32], f.now).await.unwrap();
    let found = f.session(1, f.now).await.unwrap();
    assert_eq!(found.user, f.owner);
    assert_eq!(found.team.as_ref().map(|of| of.team), Some(f.team));
    assert_eq!(f.session(2, f.now).await, None);
    // Not used for a week: ended.
    let week = f.now.plus_ms(7 * 24 * HOUR_MS);
    assert_eq!(f.session(1, week).await, None);
    // Used daily: ends after thirty days.
    let mut days = 0;
    while f
        .session(1, f.now.plus_ms(days * 24 * HOUR_MS))
        .await
        .is_some()
    {
        days += 1;
        assert!(days < 40);
    }
    assert_eq!(days, 30);
}

#[tokio::test]
async fn a_session_ends_when_it_is_closed_and_with_its_user() {
    let f = Fixture::new().await;
    let ann = f.user("ann@example.com").await;
    for token in [1, 2] {
        f.store.open_session(ann, [token; 32], f.now).await.unwrap();
    }
    f.store.close_session([1; 32]).await.unwrap();
    f.store.close_session([1; 32]).await.unwrap();
    assert_eq!(f.session(1, f.now).await, None);
    assert!(f.session(2, f.now).await.is_some());
    f.store.disable_user(ann, f.now).await.unwrap();
    assert_eq!(f.session(2, f.now).await, None);
    let refused = f.store.open_session(ann, [3; 32], f.now).await;
    assert!(matches!(refused, Err(StoreError::NotFound)), "{refused:?}");
}

#[tokio::test]
async fn another_password_ends_the_other_sessions() {
    let f = Fixture::new().await;
    let ann = f.user("ann@example.com").await;
    for token in [1, 2, 3] {
        f.store.open_session(ann, [token; 32], f.now).await.unwrap();
    }
    f.store
        .change_password(ann, HASH.to_owned(), [2; 32])
        .await
        .unwrap();
    assert_eq!(f.session(1, f.now).await, None);
    assert!(f.session(2, f.now).await.is_some());
    let found = f.store.log_in_by_email(" ANN@example.com ").await.unwrap();
    assert_eq!(found, Some((ann, HASH.to_owned())));
    // Setting the password as the operator ends all of them.
    f.store
        .set_password("ann@example.com", HASH.to_owned())
        .await
        .unwrap();
    assert_eq!(f.session(2, f.now).await, None);
}

#[tokio::test]
async fn a_session_sees_the_teams_that_its_user_is_of_now() {
    let f = Fixture::new().await;
    let ann = f.user("ann@example.com").await;
    f.store.open_session(ann, [1; 32], f.now).await.unwrap();
    assert_eq!(f.session(1, f.now).await.unwrap().team, None);
    let refused = f.store.choose_team([1; 32], f.other_team).await;
    assert!(matches!(refused, Err(StoreError::NotFound)));
    for team in [f.team, f.other_team] {
        f.store
            .add_member(team, ann, Role::Member, Role::Owner, f.now)
            .await
            .unwrap();
    }
    f.store.choose_team([1; 32], f.other_team).await.unwrap();
    let found = f.session(1, f.now).await.unwrap();
    assert_eq!(found.teams.len(), 2);
    assert_eq!(found.team.map(|of| of.team), Some(f.other_team));
    f.store
        .remove_member(f.other_team, ann, Role::Owner)
        .await
        .unwrap();
    let found = f.session(1, f.now).await.unwrap();
    assert_eq!(found.team.map(|of| of.team), Some(f.team));
}
