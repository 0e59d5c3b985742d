//! Members and invitations.

use super::*;
use crate::accounts::{Invitation, Joining, NewInvitation, OfMember};
use crate::idempotency::Outcome;

const WEEK_MS: u64 = 7 * 86_400_000;

impl Fixture {
    fn of(&self, user: UserId, by: UserId, by_role: Role) -> OfMember {
        OfMember {
            team: self.team,
            user,
            by,
            by_role,
            now: self.now,
        }
    }

    fn invitation(&self, token: u8, role: Role, email: Option<&str>) -> NewInvitation {
        NewInvitation {
            id: self.ids.invitation(self.now),
            team: self.team,
            token_hash: [token; 32],
            role,
            email: email.map(str::to_owned),
            by: self.owner,
            by_role: Role::Owner,
            expires_at: self.now.plus_ms(WEEK_MS),
            now: self.now,
        }
    }

    async fn invite(&self, new: NewInvitation) -> Result<Invitation> {
        let made = self
            .store
            .create_invitation(new, Idempotent::not_recorded())
            .await;
        made.and_then(Outcome::executed)
    }

    async fn works(&self, token: u8) -> bool {
        let found = self.store.invited([token; 32], self.now).await;
        found.unwrap().is_some()
    }

    async fn join_new(&self, token: u8, email: Option<&str>) -> Result<User> {
        let who = Joining::New {
            id: self.ids.user(self.now),
            email: email.map(str::to_owned),
            phc_hash: "$argon2id$x".to_owned(),
        };
        let joined = self.store.join([token; 32], who, self.now).await;
        joined.map(|(_, user)| user)
    }

    async fn role_of(&self, user: UserId) -> Option<Role> {
        self.store
            .member(self.team, user)
            .await
            .ok()
            .map(|(member, _)| member.role)
    }
}

fn forbidden<T>(result: &Result<T>) -> bool {
    matches!(result, Err(StoreError::Forbidden(_)))
}

#[tokio::test]
async fn who_may_change_and_remove_whom() {
    let f = Fixture::new().await;
    let ann = f.member("ann@example.com", Role::Member).await;
    let bob = f.member("bob@example.com", Role::Admin).await;
    let change = async |user, by, by_role, role| {
        let changed = f
            .store
            .change_role(f.of(user, by, by_role), role, Idempotent::not_recorded())
            .await;
        changed.map(drop)
    };
    let remove = async |user, by, by_role| {
        let removed = f
            .store
            .remove(f.of(user, by, by_role), Idempotent::not_recorded())
            .await;
        removed.map(drop)
    };
    assert!(forbidden(
        &change(bob, ann, Role::Member, Role::Member).await
    ));
    assert!(forbidden(
        &change(ann, ann, Role::Member, Role::Admin).await
    ));
    assert!(forbidden(&change(ann, bob, Role::Admin, Role::Owner).await));
    assert!(forbidden(
        &change(f.owner, bob, Role::Admin, Role::Member).await
    ));
    assert!(forbidden(&remove(bob, ann, Role::Member).await));
    assert!(forbidden(&remove(f.owner, bob, Role::Admin).await));
    assert_refused(
        change(f.owner, f.owner, Role::Owner, Role::Member).await,
        "last owner",
    );
    assert_refused(remove(f.owner, f.owner, Role::Owner).await, "last owner");
    assert!(matches!(
        remove(f.other_owner, bob, Role::Admin).await,
        Err(StoreError::NotFound)
    ));
    assert_eq!(f.role_of(ann).await, Some(Role::Member));

    change(ann, bob, Role::Admin, Role::Admin).await.unwrap();
    change(bob, f.owner, Role::Owner, Role::Owner)
        .await
        .unwrap();
    remove(f.owner, f.owner, Role::Owner).await.unwrap();
    assert_eq!(f.role_of(f.owner).await, None);
    // All members may leave, regardless of their role.
    change(ann, bob, Role::Owner, Role::Member).await.unwrap();
    remove(ann, ann, Role::Member).await.unwrap();
    assert_eq!(f.role_of(ann).await, None);
    let page = f.store.members(f.team, ALL).await.unwrap();
    assert_eq!(
        (page.items.len(), page.total, page.items[0].user),
        (1, 1, bob)
    );
}

#[tokio::test]
async fn whoever_is_removed_takes_keys_and_invitations_along() {
    let f = Fixture::new().await;
    let ann = f.member("ann@example.com", Role::Admin).await;
    f.key(NewApiKey {
        created_by: ann,
        ..f.new_key("hers", 1)
    })
    .await
    .unwrap();
    f.key(f.new_key("the owner's", 2)).await.unwrap();
    f.invite(NewInvitation {
        by: ann,
        by_role: Role::Admin,
        ..f.invitation(3, Role::Member, None)
    })
    .await
    .unwrap();
    f.invite(f.invitation(4, Role::Member, None)).await.unwrap();
    let (member, keys) = f.store.member(f.team, ann).await.unwrap();
    assert_eq!(
        (member.api_keys, keys.len(), keys[0].name.as_str()),
        (1, 1, "hers")
    );
    f.store
        .remove(f.of(ann, f.owner, Role::Owner), Idempotent::not_recorded())
        .await
        .unwrap();
    let left = f.store.list_api_keys(f.team, ALL).await.unwrap();
    assert_eq!(
        (left.total, left.items[0].name.as_str()),
        (1, "the owner's")
    );
    assert!(!f.works(3).await && f.works(4).await);
    f.store
        .add_member(f.team, ann, Role::Admin, Role::Owner, f.now)
        .await
        .unwrap();
    assert!(f.caller(1, f.now).await.is_none() && !f.works(3).await);
}

#[tokio::test]
async fn an_invitation_lets_one_person_in_once() {
    let f = Fixture::new().await;
    let made = f.invite(f.invitation(1, Role::Admin, None)).await.unwrap();
    let (team, found) = f.store.invited([1; 32], f.now).await.unwrap().unwrap();
    assert_eq!((team.id, found), (f.team, made.clone()));
    assert!(!f.works(2).await);
    // A refusal does not use up the link.
    assert!(matches!(
        f.join_new(1, None).await,
        Err(StoreError::Invalid { field: "email", .. })
    ));
    assert!(matches!(
        f.join_new(1, Some("x")).await,
        Err(StoreError::Invalid { field: "email", .. })
    ));
    assert!(matches!(
        f.join_new(1, Some("OTHER@example.com")).await,
        Err(StoreError::Conflict(_))
    ));
    let owner = f.store.join([1; 32], Joining::User(f.owner), f.now).await;
    assert!(
        matches!(owner, Err(StoreError::Conflict(_))),
        "of the team already"
    );
    let ann = f.join_new(1, Some(" Ann@Example.com ")).await.unwrap();
    assert_eq!(ann.email.as_deref(), Some("ann@example.com"));
    assert_eq!(f.role_of(ann.id).await, Some(Role::Admin));
    assert_eq!(
        f.store.password_hash(ann.id).await.unwrap().as_deref(),
        Some("$argon2id$x")
    );
    assert!(!f.works(1).await);
    assert!(matches!(
        f.join_new(1, Some("b@example.com")).await,
        Err(StoreError::NotFound)
    ));
    assert_eq!(
        f.store.invitations(f.team, ALL, f.now).await.unwrap().total,
        0
    );
    let deleted = f
        .store
        .delete_invitation(f.team, made.id, f.now, Idempotent::not_recorded())
        .await;
    assert!(
        matches!(deleted, Err(StoreError::NotFound)),
        "the invitation records who joined"
    );

    // A member of another team is then a member of both.
    f.invite(f.invitation(5, Role::Member, Some("Other@example.com")))
        .await
        .unwrap();
    f.store
        .join([5; 32], Joining::User(f.other_owner), f.now)
        .await
        .unwrap();
    for (team, role) in [(f.team, Role::Member), (f.other_team, Role::Owner)] {
        let (member, _) = f.store.member(team, f.other_owner).await.unwrap();
        assert_eq!(member.role, role);
    }
}

#[tokio::test]
async fn an_invitation_for_somebody_is_for_nobody_else() {
    let f = Fixture::new().await;
    f.invite(f.invitation(1, Role::Member, Some("Ann@example.com")))
        .await
        .unwrap();
    assert_refused(
        f.join_new(1, Some("bob@example.com")).await,
        "another person",
    );
    let other = f
        .store
        .join([1; 32], Joining::User(f.other_owner), f.now)
        .await;
    assert_refused(other, "another person");
    let ann = f.join_new(1, None).await.unwrap();
    assert_eq!(ann.email.as_deref(), Some("ann@example.com"));
}

#[tokio::test]
async fn an_invitation_works_as_long_as_its_maker_may_make_it() {
    let f = Fixture::new().await;
    let ann = f.member("ann@example.com", Role::Owner).await;
    let by_ann = |token, role| NewInvitation {
        by: ann,
        ..f.invitation(token, role, None)
    };
    f.invite(by_ann(1, Role::Owner)).await.unwrap();
    f.invite(by_ann(2, Role::Member)).await.unwrap();
    f.store
        .set_role(f.team, ann, Role::Admin, Role::Owner)
        .await
        .unwrap();
    assert!(
        !f.works(1).await && f.works(2).await,
        "an admin cannot make owners"
    );
    f.store
        .set_role(f.team, ann, Role::Member, Role::Owner)
        .await
        .unwrap();
    assert!(!f.works(2).await);
    assert_eq!(
        f.store.invitations(f.team, ALL, f.now).await.unwrap().items,
        []
    );
    f.store
        .set_role(f.team, ann, Role::Owner, Role::Owner)
        .await
        .unwrap();
    assert!(f.works(1).await && f.works(2).await);
    f.store.disable_user(ann, f.now).await.unwrap();
    assert!(!f.works(2).await);
    assert!(matches!(
        f.join_new(2, Some("b@example.com")).await,
        Err(StoreError::NotFound)
    ));
}

#[tokio::test]
async fn invitations_have_an_end_and_a_number() {
    let mut f = Fixture::new().await;
    let with = |expires_at| NewInvitation {
        expires_at,
        ..f.invitation(1, Role::Member, None)
    };
    for bad in [f.now, f.now.plus_ms(31 * 86_400_000)] {
        let refused = f.invite(with(bad)).await;
        assert!(matches!(
            refused,
            Err(StoreError::Invalid {
                field: "expires_at",
                ..
            })
        ));
    }
    let forbidden_ones = [
        NewInvitation {
            by_role: Role::Member,
            ..f.invitation(1, Role::Member, None)
        },
        NewInvitation {
            by_role: Role::Admin,
            ..f.invitation(1, Role::Owner, None)
        },
    ];
    for new in forbidden_ones {
        assert!(forbidden(&f.invite(new).await));
    }
    let known = f
        .invite(f.invitation(1, Role::Member, Some("nobody")))
        .await;
    assert!(matches!(
        known,
        Err(StoreError::Invalid { field: "email", .. })
    ));
    let ann = f.member("ann@example.com", Role::Member).await;
    let known = f
        .invite(f.invitation(1, Role::Member, Some("ANN@example.com")))
        .await;
    assert!(matches!(known, Err(StoreError::Conflict(_))));
    for token in 0..100 {
        f.invite(f.invitation(token, Role::Member, None))
            .await
            .unwrap();
    }
    let more = f.invite(f.invitation(200, Role::Member, None)).await;
    assert!(matches!(more, Err(StoreError::Conflict(_))));
    let page = f.store.invitations(f.team, ALL, f.now).await.unwrap();
    assert_eq!(page.total, 100);
    let first = page.items[0].id;
    let (other, now) = (f.other_team, f.now);
    let theirs = f
        .store
        .delete_invitation(other, first, now, Idempotent::not_recorded())
        .await;
    assert!(matches!(theirs, Err(StoreError::NotFound)));
    f.store
        .delete_invitation(f.team, first, now, Idempotent::not_recorded())
        .await
        .unwrap();
    f.invite(f.invitation(200, Role::Member, None))
        .await
        .unwrap();
    f.now = f.now.plus_ms(WEEK_MS);
    assert!(!f.works(5).await);
    assert_eq!(
        f.store.invitations(f.team, ALL, f.now).await.unwrap().total,
        0
    );
    f.invite(f.invitation(201, Role::Member, None))
        .await
        .unwrap();
    assert_eq!(f.role_of(ann).await, Some(Role::Member));
}
