//! Memory of the real program under the worst clients.

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Child;

use crate::process::Process;

/// Peak memory of the process in MiB.
fn peak_mib(child: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: u64 = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib / 1024
}

#[tokio::test]
async fn unread_streams_use_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let server = Process::start(dir.path()).await;
    let agent = server.agent(json!([{"wait": "1h"}])).await;
    let run = server.run(json!({"agent_id": agent})).await;
    for _ in 0..10 {
        let message = json!({"message": "x".repeat(3_900_000)});
        let path = format!("/v1/runs/{run}/messages");
        server.post(&path, message).await;
    }
    let before = peak_mib(&server.child);
    let mut streams = Vec::new();
    for _ in 0..50 {
        let address = server.url.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "GET /v1/runs/{run}/events HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n\r\n",
            server.key
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut begun = [0; 15];
        stream.read_exact(&mut begun).await.unwrap();
        assert_eq!(&begun, b"HTTP/1.1 200 OK");
        streams.push(stream);
    }
    // Other clients are served in the meantime.
    for _ in 0..100 {
        assert_eq!(server.get(&format!("/v1/runs/{run}")).await.0, 200);
    }
    let taken = peak_mib(&server.child) - before;
    assert!(taken < 300, "{taken} MiB");
    drop(streams);
}
