//! Keeps the pages of `docs/` that are made from tables in step with them.

use std::path::Path;

/// Fails when `docs/NAME` differs from `expected`; `UPDATE_DOCS=1` rewrites it.
pub(crate) fn check(name: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs")
        .join(name);
    if std::env::var_os("UPDATE_DOCS").is_some_and(|value| value == "1") {
        std::fs::create_dir_all(path.with_file_name("")).expect("docs directory");
        std::fs::write(&path, expected).expect("page written");
        return;
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "docs/{name} is out of date; run: UPDATE_DOCS=1 cargo test -p tracer-agent --lib"
    );
}
