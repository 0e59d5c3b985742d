//! A command that exceeds a limit is stopped, and its error names the limit.

use serde_json::json;

use super::Bench;

/// A program that holds kernel memory in the way that its argument names.
const HOLDER: &str = include_str!("holder.c");
const HOLDS: [&str; 10] = [
    "sockets",
    "sockets_under_way",
    "pipes",
    "large_buffers",
    "memory_files",
    "shared_memory",
    "message_queues",
    "semaphores",
    "page_tables",
    "mappings",
];

/// Limits that are reached quickly.
const TIGHT: [(&str, &str); 5] = [
    ("ERRAND_SANDBOX__MEMORY_BYTES_MAX", "96MiB"),
    ("ERRAND_SANDBOX__PROCESSES_MAX", "40"),
    ("ERRAND_SANDBOX__DISK_BYTES_MAX", "64MiB"),
    ("ERRAND_SANDBOX__FILES_MAX", "500"),
    ("ERRAND_SANDBOX__FILE_BYTES_MAX", "32MiB"),
];

/// Runs a command that a limit must stop, and returns the error.
async fn stopped(bench: &Bench, command: &str, setting: &str) -> String {
    let result = bench
        .call(json!({"command": command, "timeout_s": 100}))
        .await;
    let error = result.expect_err(command);
    assert!(
        error.starts_with("limit_exceeded: ") && error.contains(setting),
        "{command}: {error}"
    );
    error
}

#[tokio::test]
async fn memory_of_all_processes_together_is_bounded() {
    let bench = Bench::start_with(&TIGHT).await;
    let setting = "sandbox.memory_bytes_max";
    // Several processes, none of which uses much by itself.
    let hog = "hog() { local s; s=$(head -c 30000000 /dev/zero | tr '\\0' x); sleep 280.1; echo \"$s\" | wc -c; }; for i in 1 2 3 4 5 6; do hog & done; wait";
    let error = stopped(&bench, &format!("echo begun; {hog}"), setting).await;
    assert!(
        error.ends_with("stdout: begun\n") || error.contains("stdout: begun\n"),
        "{error}"
    );
    assert!(super::processes_with("sleep 280.").is_empty());
    assert_eq!(bench.stdout("echo on").await, "on\n");
    bench.finish().await;
}

#[tokio::test]
async fn files_in_memory_are_bounded() {
    let bench = Bench::start_with(&[]).await;
    let result = bench.call(json!({"command": "head -c 400M /dev/zero > /tmp/x; head -c 400M /dev/zero > /dev/shm/x; head -c 400M /dev/zero > ~/x; du -m /tmp/x /dev/shm/x ~/x | cut -f1 | tr '\\n' ' '"})).await.unwrap();
    assert_eq!(result["stdout"], "256 64 64 ", "{result:#}");
    bench.finish().await;
}

/// Memory that belongs to no process: in buffers of sockets and pipes, in unnamed files and segments, in page tables.
/// Each way is stopped, or does not exist inside.
#[tokio::test]
async fn memory_in_the_kernel_is_bounded() {
    let bench = Bench::start_with(&TIGHT).await;
    let build = tempfile::TempDir::new().unwrap();
    let holder = super::hostile::compile(build.path(), HOLDER);
    bench.put("holder", std::fs::read(holder).unwrap()).await;
    let mut not_stopped = Vec::new();
    for way in HOLDS {
        let command = format!("cp holder /tmp/h; chmod 700 /tmp/h; exec /tmp/h {way}");
        match bench
            .call(json!({"command": command, "timeout_s": 100}))
            .await
        {
            Ok(result) if result["exit_code"] == 3 => {}
            Err(error)
                if error.starts_with("limit_exceeded: ")
                    && error.contains("sandbox.memory_bytes_max") => {}
            other => not_stopped.push(format!("{way}: {other:?}")),
        }
    }
    assert!(not_stopped.is_empty(), "{not_stopped:#?}");
    // The usual amounts of these are permitted.
    let ordinary = "cat /proc/self/status | grep -c VmPTE";
    assert_eq!(bench.stdout(ordinary).await, "1\n");
    bench.finish().await;
}

#[tokio::test]
async fn processes_are_bounded() {
    let bench = Bench::start_with(&TIGHT).await;
    stopped(
        &bench,
        ":() { :|:& }; :; sleep 281.1",
        "sandbox.processes_max",
    )
    .await;
    stopped(
        &bench,
        "for i in $(seq 200); do sleep 281.2 & done; wait",
        "sandbox.processes_max",
    )
    .await;
    assert!(super::processes_with("sleep 281.").is_empty());
    assert_eq!(bench.stdout("echo on").await, "on\n");
    bench.finish().await;
}

#[tokio::test]
async fn disk_is_bounded_and_can_be_cleared() {
    let bench = Bench::start_with(&TIGHT).await;
    let fills = "for i in $(seq 100); do head -c 8M /dev/zero > f$i; done; sleep 282.1";
    stopped(&bench, fills, "sandbox.disk_bytes_max").await;
    // Files beyond the limit can stay and be removed, but not grow.
    stopped(
        &bench,
        "for i in $(seq 100); do head -c 8M /dev/zero > g$i; done; sleep 282.2",
        "sandbox.disk_bytes_max",
    )
    .await;
    assert_eq!(bench.stdout("rm -f f* g*; ls | wc -l").await, "0\n");
    assert_eq!(
        bench.stdout("head -c 1M /dev/zero > small; ls").await,
        "small\n"
    );
    bench.finish().await;
}

#[tokio::test]
async fn a_teams_quota_bounds_its_commands() {
    let bench = Bench::start_with(&[("ERRAND_SANDBOX__TEAM_DISK_BYTES_MAX", "64MiB")]).await;
    let fills = "for i in $(seq 100); do head -c 8M /dev/zero > f$i; done; sleep 286.1";
    stopped(&bench, fills, "sandbox.team_disk_bytes_max").await;
    // Files that the command left count for the whole team.
    let other = bench.app.sandbox(&bench.team).await;
    let url = format!("/v1/sandboxes/{other}/files?path=x");
    let upload = async || {
        let bearer = format!("Bearer {}", bench.team.key);
        let headers = [("authorization", bearer.as_str())];
        let body = axum::body::Body::from("x");
        bench
            .app
            .send(http::Method::POST, &url, &headers, body)
            .await
    };
    let (_, message) = upload().await.error(413);
    assert!(message.contains("sandbox.team_disk_bytes_max"), "{message}");
    // Existing files can stay and be removed, but not grow.
    stopped(
        &bench,
        "for i in $(seq 100); do head -c 8M /dev/zero > g$i; done; sleep 286.2",
        "sandbox.team_disk_bytes_max",
    )
    .await;
    assert_eq!(bench.stdout("rm -f f* g*; ls | wc -l").await, "0\n");
    assert_eq!(
        bench.stdout("head -c 1M /dev/zero > small; ls").await,
        "small\n"
    );
    upload().await.expect(201);
    bench.finish().await;
}

#[tokio::test]
async fn a_file_without_a_name_counts_as_long_as_it_is_open() {
    let bench = Bench::start_with(&TIGHT).await;
    let hidden = "for i in 3 4 5 6 7 8; do eval \"exec $i<>h$i\"; rm h$i; eval \"head -c 30M /dev/zero >&$i\"; done; ls | wc -l; sleep 283.1";
    stopped(&bench, hidden, "sandbox.disk_bytes_max").await;
    bench.finish().await;
}

#[tokio::test]
async fn the_number_of_files_is_bounded() {
    let bench = Bench::start_with(&TIGHT).await;
    stopped(
        &bench,
        "mkdir d; for i in $(seq 3000); do : > d/$i; done; sleep 284.1",
        "sandbox.files_max",
    )
    .await;
    assert_eq!(bench.stdout("rm -r d; ls | wc -l").await, "0\n");
    bench.finish().await;
}

#[tokio::test]
async fn one_file_is_bounded_and_sparse_ones_too() {
    let bench = Bench::start_with(&TIGHT).await;
    stopped(
        &bench,
        "exec head -c 60M /dev/zero > large",
        "sandbox.file_bytes_max",
    )
    .await;
    stopped(
        &bench,
        "exec truncate -s 1T sparse",
        "sandbox.file_bytes_max",
    )
    .await;
    assert_eq!(
        bench
            .stdout("truncate -s 30M sparse && du -k sparse | cut -f1")
            .await,
        "0\n"
    );
    bench.finish().await;
}

#[tokio::test]
async fn head_and_tail_of_a_flood_of_output_are_kept() {
    let bench = Bench::start().await;
    let result = bench
        .call(json!({"command": "echo first; head -c 300M /dev/zero | tr '\\0' x; echo; echo last; (echo erst; head -c 2M /dev/urandom; echo letzt) >&2"}))
        .await
        .unwrap();
    assert_eq!(
        (&result["truncated"], &result["exit_code"]),
        (&json!(true), &json!(0))
    );
    let out = result["stdout"].as_str().unwrap();
    let err = result["stderr"].as_str().unwrap();
    assert!(
        out.len() + err.len() <= 1_001_000,
        "{} {}",
        out.len(),
        err.len()
    );
    assert!(out.starts_with("first\nxxx") && out.ends_with("xxx\nlast\n"));
    assert!(
        out.contains("[… 314072812 bytes left out …]"),
        "{}",
        &out[249_990..250_060]
    );
    assert!(err.starts_with("erst\n") && err.ends_with("letzt\n"));
    bench.finish().await;
}

#[tokio::test]
async fn an_endless_output_is_ended() {
    let bench = Bench::start().await;
    let result = bench
        .call(json!({"command": "yes", "timeout_s": 100}))
        .await;
    let error = result.unwrap_err();
    assert!(
        error.starts_with("limit_exceeded: the command used more output"),
        "{error}"
    );
    assert!(error.len() < 10_000);
    bench.finish().await;
}

#[tokio::test]
async fn descriptors_are_bounded() {
    let bench = Bench::start().await;
    assert_eq!(
        bench.stdout("ulimit -n; ulimit -c; ulimit -Hn").await,
        "1024\n0\n1024\n"
    );
    bench.finish().await;
}
