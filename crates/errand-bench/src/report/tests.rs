use serde_json::json;

use super::*;

/// Lines as the benchmark prints them.
fn lines() -> Vec<Line> {
    let disk =
        json!({"fdatasync_per_s": 7000.0, "fdatasync_ms_p50": 0.13, "write_mb_per_s": 800.0});
    [
        json!({"machine": {"processor": "P", "cores": 2, "memory_bytes": 25_769_803_776_u64, "kernel": "6.1", "disk": "ext4 on vda (virtio)"}}),
        json!({"measure": "uploads", "quick": false, "disk": disk, "details": {},
            "figures": [{"name": "An upload", "unit": "MB/s", "measured": 512.25}]}),
        json!({"measure": "throughput", "quick": false, "disk": disk, "details": {},
            "figures": [
                {"name": "Runs with 16 clients", "unit": "/s", "measured": 1300.0, "goal": {"at_least": 1200.0}, "limit": {"of": "of the processors", "share": 0.9}},
                {"name": "`POST /v1/runs`", "unit": "ms", "measured": 4.5, "goal": {"at_most": 2.0}},
            ],
            "curves": [{"name": "POST /v1/runs", "points": [[50.0, 1.5], [99.0, 9.0], [100.0, 31.0]]}]}),
    ]
    .into_iter()
    .map(|line| serde_json::from_value(line).unwrap())
    .collect()
}

#[test]
fn the_report_contains_goals_and_measured_figures() {
    let report = Report::of("2026-11-23", &lines()).unwrap();
    for expected in [
        "Measured on 2026-11-23",
        "| Disk | ext4 on vda (virtio) |",
        "| Memory | 24.0 GiB |",
        "| Runs with 16 clients | ≥ 1,200 /s | 1,300 /s | yes | 90% of the processors |",
        "| `POST /v1/runs` | ≤ 2 ms | 4.5 ms | **no** | – |",
        "| An upload | 512 MB/s | – |",
        "| throughput | 7,000 /s | 0.13 ms | 800 MB/s |",
    ] {
        assert!(
            report.text.contains(expected),
            "{expected}\n{}",
            report.text
        );
    }
    assert!(!report.text.contains("mean nothing"));
    assert!(report.text.find("**throughput**") < report.text.find("**uploads**"));
}

#[test]
fn the_report_can_be_rebuilt_from_the_lines_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("performance.md");
    Report::of("2026-11-23", &lines())
        .unwrap()
        .write(&file)
        .unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    for drawing in ["goals.svg", "runs.svg", "latency.svg"] {
        assert!(text.contains(&format!("(performance/{drawing})")), "{text}");
        let svg = std::fs::read_to_string(dir.path().join("performance").join(drawing)).unwrap();
        assert!(
            svg.starts_with("<svg") && svg.ends_with("</svg>\n"),
            "{svg}"
        );
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
    let json = text
        .split("```json\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let again: Vec<Line> = json
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        Report::of("2026-11-23", &again)
            .unwrap()
            .text
            .replace(FOLDER, "performance"),
        text
    );
}

#[test]
fn numbers_are_formatted_for_people() {
    for (figure, text) in [
        (0.0, "0"),
        (0.125, "0.12"),
        (12.34, "12.3"),
        (999.6, "1,000"),
        (1_234_567.0, "1,234,567"),
        (-42.0, "-42"),
        (1.5, "1.5"),
    ] {
        assert_eq!(number(figure), text);
    }
}

/// The prose of the report is here, and its figures are in the document: both are kept in step.
#[test]
fn the_document_is_what_its_results_make() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/performance.md");
    let text = std::fs::read_to_string(&file).unwrap();
    let date = text.split_once("Measured on ").unwrap().1;
    let date = date.split(' ').next().unwrap();
    let results = text.split_once("```json\n").unwrap().1;
    let results = results.split("```").next().unwrap();
    let lines: Vec<Line> = results
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let report = Report::of(date, &lines).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        report.write(&file).unwrap();
        return;
    }
    assert!(
        report.text.replace(FOLDER, "performance") == text,
        "docs/performance.md is not what its results make. Rewrite it with\n\
         UPDATE_DOCS=1 cargo test -p errand-bench the_document_is_what_its_results_make"
    );
}
