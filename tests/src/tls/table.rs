//! The table in `docs/tls.md`, from what the tests expect.

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::super::Program;

    const BEGIN: &str = "<!-- Generated from tests/src/tls/program.rs: begin -->\n";
    const END: &str = "<!-- end -->\n";

    fn table() -> String {
        let mut table =
            String::from("| program | TLS | as client | as server |\n| --- | --- | --- | --- |\n");
        let shown = |seen: Option<bool>| match seen {
            None => "",
            Some(true) => "every request",
            Some(false) => "not seen",
        };
        for program in Program::ALL {
            let facts = program.facts();
            let (client, server) = (shown(facts.client), shown(facts.server));
            let _ = writeln!(
                table,
                "| {} | {} | {client} | {server} |",
                facts.name, facts.library
            );
        }
        table
    }

    #[test]
    fn docs_are_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/tls.md");
        let page = std::fs::read_to_string(path).expect("docs/tls.md");
        let (before, rest) = page.split_once(BEGIN).expect("begin of the table");
        let (_, after) = rest.split_once(END).expect("end of the table");
        let wanted = format!("{before}{BEGIN}\n{}\n{END}{after}", table());
        if std::env::var_os("UPDATE_DOCS").is_some_and(|value| value == "1") {
            std::fs::write(path, wanted).expect("page written");
            return;
        }
        assert!(
            page == wanted,
            "docs/tls.md is out of date; run: UPDATE_DOCS=1 cargo test -p tracer-tests --lib"
        );
    }
}
