//! Operator requests, through the socket and directly, on a real store.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use errand_core::id::IdGen;
use errand_store::data_dir::Making;
use errand_store::seal::MasterKey;
use errand_store::{OpenError, OpenOptions};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::reach::execute;
use super::socket::{AdminSocket, SocketError, call};
use super::*;
use crate::config::{Config, Flags, load};
use crate::password::hash_password;

const URL: &str = "https://errand.example.com";

fn now() -> Timestamp {
    Timestamp::from_millis(1_800_000_000_000)
}

fn open(dir: &Path) -> Result<Store, OpenError> {
    Store::open(OpenOptions {
        dir: dir.to_owned(),
        boot: IdGen::new([1; 32]).boot(now()),
        respond_base: URL.to_owned(),
        master_key: MasterKey::from_bytes([7; 32]),
        readers: 1,
        cache_kib: 2048,
    })
}

fn admin_of(store: &Store) -> Admin {
    Admin::new(store.clone(), [2; 32], Clock::manual(now()), URL.to_owned())
}

fn admin() -> (Admin, Store, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    (admin_of(&store), store, dir)
}

fn create(name: &str) -> AdminRequest {
    AdminRequest::CreateKey {
        name: name.to_owned(),
        expires_in_ms: Some(60_000),
        team: None,
    }
}

fn link(email: &str) -> AdminRequest {
    AdminRequest::LinkUser {
        email: email.to_owned(),
        role: None,
        team: None,
    }
}

fn set_password(email: &str, phc_hash: &str) -> AdminRequest {
    AdminRequest::SetPassword {
        email: email.to_owned(),
        phc_hash: PasswordHash(phc_hash.to_owned()),
    }
}

fn key_of(answer: AdminAnswer) -> ApiKeySecret {
    let AdminAnswer::Key { secret, .. } = answer else {
        panic!("a key")
    };
    ApiKeySecret::parse(&secret).unwrap()
}

fn link_of(answer: AdminAnswer) -> (String, LinkHolder) {
    let AdminAnswer::Link { url, holder, .. } = answer else {
        panic!("a link")
    };
    (url, holder)
}

fn refused<T>(result: Result<T, AdminError>) -> String {
    let Err(error) = result else {
        panic!("refused")
    };
    error.to_string()
}

#[tokio::test]
async fn a_key_created_through_the_socket_is_valid() {
    let (admin, store, dir) = admin();
    let socket = AdminSocket::start(dir.path(), admin).unwrap();
    let mode = std::fs::metadata(dir.path().join("admin.sock"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);

    let Ok(answer) = call(dir.path(), &create("over the socket")).await else {
        panic!("a key")
    };
    let caller = store
        .caller_by_key_hash(key_of(answer).hash(), now())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(caller.role, Role::Owner);
    assert_eq!(caller.expires_at, Some(now().plus_ms(60_000)));
    let Ok(AdminAnswer::Keys { keys }) =
        call(dir.path(), &AdminRequest::ListKeys { team: None }).await
    else {
        panic!("keys")
    };
    assert_eq!(keys.len(), 1);
    assert_eq!(keys[0].name, "over the socket");

    let Err(error) = call(dir.path(), &create(" ")).await else {
        panic!("refused")
    };
    assert!(
        matches!(&error, SocketError::Refused(why) if why.contains("1 to 200 characters")),
        "{error}"
    );
    socket.shut_down().await;
    assert!(!dir.path().join("admin.sock").exists());
    let Err(error) = call(dir.path(), &AdminRequest::ListKeys { team: None }).await else {
        panic!("nobody")
    };
    assert!(matches!(error, SocketError::NoServer), "{error}");
}

#[tokio::test]
async fn an_invalid_request_is_answered_with_an_error() {
    let (admin, _store, dir) = admin();
    let socket = AdminSocket::start(dir.path(), admin).unwrap();
    for line in [
        "{}\n",
        "nonsense\n",
        "{\"request\":\"create_key\",\"name\":\"a\",\"expires_in_ms\":null,\"x\":1}\n",
    ] {
        let mut stream = tokio::net::UnixStream::connect(dir.path().join("admin.sock"))
            .await
            .unwrap();
        stream.write_all(line.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with("{\"error\":\"the request cannot be read"),
            "{line}: {answer}"
        );
    }
    socket.shut_down().await;
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_long_path_works() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("d".repeat(120));
    let store = open(&long).unwrap();
    std::fs::write(long.join("admin.sock"), "").unwrap();
    let socket = AdminSocket::start(&long, admin_of(&store)).unwrap();
    assert!(matches!(
        call(&long, &AdminRequest::WebhookSecret { team: None }).await,
        Ok(AdminAnswer::WebhookSecret { .. })
    ));
    socket.shut_down().await;
}

fn config(dir: &Path) -> Config {
    let flags = Flags {
        data_dir: Some(dir.to_str().unwrap().to_owned()),
        ..Flags::default()
    };
    load(&flags, &std::collections::BTreeMap::new(), None).unwrap()
}

fn setup(dir: &Path, making: Making) -> Store {
    let setup = crate::app::StoreSetup {
        dir: dir.to_owned(),
        url: URL.to_owned(),
        readers: 1,
        key: None,
        opening: crate::app::Opening {
            making,
            discards_secrets: false,
        },
    };
    let boot = IdGen::new([3; 32]).boot(now());
    setup.open(boot, errand_store::Trial::default()).unwrap()
}

#[tokio::test]
async fn requests_reach_the_store_or_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("data");
    let config = config(&dir);
    let refused = execute(&config, create("no store")).await.err().unwrap();
    assert!(
        refused.to_string().contains("there is no store in"),
        "{refused}"
    );
    assert!(!dir.exists(), "nothing is left behind");
    drop(setup(&dir, Making::BY_ITSELF));
    let alone = key_of(execute(&config, create("no server")).await.unwrap());

    // The lock is free again, and the master key is the one that was created.
    let store = setup(&dir, Making::default());
    assert!(
        store
            .caller_by_key_hash(alone.hash(), Clock::System.now())
            .await
            .unwrap()
            .is_some()
    );
    let socket = AdminSocket::start(&dir, admin_of(&store)).unwrap();
    let asked = key_of(execute(&config, create("a server")).await.unwrap());
    assert!(
        store
            .caller_by_key_hash(asked.hash(), now())
            .await
            .unwrap()
            .is_some()
    );
    socket.shut_down().await;
}

#[tokio::test]
async fn the_first_link_claims_the_owner_and_later_ones_invite() {
    let (admin, store, _dir) = admin();
    let (url, holder) = link_of(admin.execute(link("ann@example.com")).await.unwrap());
    assert_eq!(holder, LinkHolder::FirstOwner);
    let token = SetUpToken::parse(
        url.strip_prefix("https://errand.example.com/set-up/")
            .unwrap(),
    )
    .unwrap();
    let owner = store
        .set_up_link(token.hash(), now())
        .await
        .unwrap()
        .unwrap();

    let hash = hash_password("correct horse battery").unwrap();
    store
        .claim_set_up_link(
            token.hash(),
            Some("ann@example.com".to_owned()),
            hash,
            now(),
        )
        .await
        .unwrap();
    let (_, holder) = link_of(admin.execute(link("Ann@Example.com")).await.unwrap());
    assert_eq!(holder, LinkHolder::User);

    let request = AdminRequest::LinkUser {
        email: "bob@example.com".to_owned(),
        role: Some(Role::Admin),
        team: None,
    };
    assert_eq!(
        link_of(admin.execute(request.clone()).await.unwrap()).1,
        LinkHolder::NewUser
    );
    let bob = store
        .user_by_email("bob@example.com")
        .await
        .unwrap()
        .unwrap();
    assert_ne!(bob.id, owner.id);
    assert!(refused(admin.execute(request).await).contains("leave --role out"));
    assert!(refused(admin.execute(link("nobody")).await).contains("email address"));
}

#[tokio::test]
async fn a_password_claims_the_first_owner_once() {
    let (admin, store, _dir) = admin();
    let hash = hash_password("correct horse battery").unwrap();
    let set = admin.execute(set_password("ann@example.com", &hash)).await;
    assert!(matches!(set, Ok(AdminAnswer::PasswordSet)));
    let ann = store
        .user_by_email("ann@example.com")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        store.password_hash(ann.id).await.unwrap(),
        Some(hash.clone())
    );

    let other = hash_password("another horse battery").unwrap();
    assert!(
        admin
            .execute(set_password("ANN@example.com", &other))
            .await
            .is_ok()
    );
    assert_eq!(
        store.password_hash(ann.id).await.unwrap(),
        Some(other.clone())
    );
    let unknown = admin.execute(set_password("bob@example.com", &other)).await;
    assert!(refused(unknown).contains("errand users link bob@example.com"));
    let plain = admin
        .execute(set_password("ann@example.com", "correct horse battery"))
        .await;
    assert!(refused(plain).contains("argon2id"));
}

#[tokio::test]
async fn a_link_for_another_user_keeps_the_owners_link() {
    let (admin, store, _dir) = admin();
    let hash = hash_password("correct horse battery").unwrap();
    admin
        .execute(set_password("ann@example.com", &hash))
        .await
        .map(drop)
        .unwrap();
    let (url, _) = link_of(admin.execute(link("ann@example.com")).await.unwrap());
    admin
        .execute(link("bob@example.com"))
        .await
        .map(drop)
        .unwrap();
    let token = SetUpToken::parse(url.rsplit('/').next().unwrap()).unwrap();
    assert!(
        store
            .set_up_link(token.hash(), now())
            .await
            .unwrap()
            .is_some()
    );
}

#[test]
fn debug_output_hides_password_hashes() {
    assert!(!format!("{:?}", set_password("a@b.c", "$argon2id$secret")).contains("secret"));
}
