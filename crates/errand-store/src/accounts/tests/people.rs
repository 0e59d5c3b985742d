//! Users, their addresses, passwords and set-up links.

use super::*;

#[tokio::test]
async fn an_address_is_one_user_whatever_its_case() {
    let f = Fixture::new().await;
    let ann = f.user(" Ann@Example.COM ").await;
    let found = f
        .store
        .user_by_email("ANN@example.com\n")
        .await
        .unwrap()
        .unwrap();
    let expected = User {
        id: ann,
        email: Some("ann@example.com".to_owned()),
        created_at: f.now,
        disabled: false,
    };
    assert_eq!(found, expected);
    let taken = f
        .store
        .create_user(NewUser {
            id: f.ids.user(f.now),
            email: "aNN@example.com".to_owned(),
            now: f.now,
        })
        .await;
    assert!(matches!(taken, Err(StoreError::Conflict(_))), "{taken:?}");

    let long = format!("{}@example.com", "a".repeat(254));
    for bad in [
        "",
        "ann",
        "@example.com",
        "ann@",
        "a@b@c",
        "a b@example.com",
        "a\u{7}@example.com",
        &long,
    ] {
        let refused = f
            .store
            .create_user(NewUser {
                id: f.ids.user(f.now),
                email: bad.to_owned(),
                now: f.now,
            })
            .await;
        assert!(
            matches!(refused, Err(StoreError::Invalid { field: "email", .. })),
            "{bad:?}: {refused:?}"
        );
        assert_eq!(f.store.user_by_email(bad).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_set_up_link_claims_the_owner_without_an_address_once() {
    let f = Fixture::new().await;
    let end = f.now.plus_ms(1000);
    f.store
        .create_set_up_link(f.owner, [1; 32], end, f.now)
        .await
        .unwrap();
    f.store
        .create_set_up_link(f.owner, [2; 32], end, f.now)
        .await
        .unwrap();
    assert_eq!(
        f.store.set_up_link([1; 32], f.now).await.unwrap(),
        None,
        "replaced by a newer one"
    );
    assert_eq!(
        f.store
            .set_up_link([2; 32], f.now)
            .await
            .unwrap()
            .unwrap()
            .id,
        f.owner
    );
    assert_eq!(
        f.store.set_up_link([2; 32], end).await.unwrap(),
        None,
        "expired"
    );

    let claim = |hash: u8, email: Option<&str>, now| {
        f.store.claim_set_up_link(
            [hash; 32],
            email.map(str::to_owned),
            "$argon2id$a".to_owned(),
            now,
        )
    };
    assert!(matches!(
        claim(2, None, f.now).await,
        Err(StoreError::Invalid { field: "email", .. })
    ));
    assert!(matches!(
        claim(2, Some("nothing"), f.now).await,
        Err(StoreError::Invalid { field: "email", .. })
    ));
    assert!(matches!(
        claim(2, Some("OTHER@example.com"), f.now).await,
        Err(StoreError::Conflict(_))
    ));
    assert!(matches!(
        claim(1, Some("me@example.com"), f.now).await,
        Err(StoreError::NotFound)
    ));
    assert!(matches!(
        claim(2, Some("me@example.com"), end).await,
        Err(StoreError::NotFound)
    ));

    let claimed = claim(2, Some("Me@example.com"), f.now).await.unwrap();
    assert_eq!(
        (claimed.id, claimed.email.as_deref()),
        (f.owner, Some("me@example.com"))
    );
    assert_eq!(
        f.store.user_by_email("me@example.com").await.unwrap(),
        Some(claimed)
    );
    assert_eq!(
        f.store.password_hash(f.owner).await.unwrap().as_deref(),
        Some("$argon2id$a")
    );
    assert!(
        matches!(
            claim(2, Some("me@example.com"), f.now).await,
            Err(StoreError::NotFound)
        ),
        "used"
    );
}

#[tokio::test]
async fn a_set_up_link_keeps_the_address_that_there_is() {
    let f = Fixture::new().await;
    f.store
        .create_set_up_link(f.other_owner, [1; 32], f.now.plus_ms(1), f.now)
        .await
        .unwrap();
    let other = f
        .store
        .claim_set_up_link(
            [1; 32],
            Some("new@example.com".to_owned()),
            "h".to_owned(),
            f.now,
        )
        .await;
    assert!(
        matches!(other, Err(StoreError::Invalid { field: "email", .. })),
        "{other:?}"
    );
    let claimed = f
        .store
        .claim_set_up_link([1; 32], None, "h".to_owned(), f.now)
        .await
        .unwrap();
    assert_eq!(claimed.email.as_deref(), Some("other@example.com"));
}

#[tokio::test]
async fn a_password_that_is_set_ends_links_and_a_disabled_user_has_neither() {
    let f = Fixture::new().await;
    let ann = f.user("ann@example.com").await;
    f.store
        .create_set_up_link(ann, [1; 32], f.now.plus_ms(9), f.now)
        .await
        .unwrap();
    f.store
        .set_password("ANN@example.com", "h1".to_owned())
        .await
        .unwrap();
    assert_eq!(f.store.set_up_link([1; 32], f.now).await.unwrap(), None);
    assert_eq!(
        f.store.password_hash(ann).await.unwrap().as_deref(),
        Some("h1")
    );
    assert!(matches!(
        f.store.set_password("x@example.com", "h".to_owned()).await,
        Err(StoreError::NotFound)
    ));

    f.store
        .create_set_up_link(ann, [2; 32], f.now.plus_ms(9), f.now)
        .await
        .unwrap();
    f.store.disable_user(ann, f.now).await.unwrap();
    assert_eq!(f.store.set_up_link([2; 32], f.now).await.unwrap(), None);
    assert_eq!(f.store.password_hash(ann).await.unwrap(), None);
    assert!(
        f.store
            .user_by_email("ann@example.com")
            .await
            .unwrap()
            .unwrap()
            .disabled
    );
    assert_refused(
        f.store
            .set_password("ann@example.com", "h2".to_owned())
            .await,
        "disabled",
    );
    assert_refused(
        f.store
            .create_set_up_link(ann, [3; 32], f.now.plus_ms(9), f.now)
            .await,
        "disabled",
    );
    let nobody = f
        .store
        .create_set_up_link(f.ids.user(f.now), [4; 32], f.now.plus_ms(9), f.now)
        .await;
    assert!(matches!(nobody, Err(StoreError::NotFound)), "{nobody:?}");
}
