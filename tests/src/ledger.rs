//! The agent's ledger as shown on `/ledger`, and whether it adds up.

use std::collections::BTreeMap;

/// One stage.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Everything that entered.
    pub seen: u64,
    /// What was handed on.
    pub exported: u64,
    /// What sampling left out.
    pub sampled_out: u64,
    /// What was lost, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// What is still inside.
    pub pending: u64,
}

/// One entry of `/ledger/open`, as far as it is of use here.
#[derive(Clone, Debug, PartialEq, serde::Deserialize)]
pub struct Open {
    /// Whose exchange it is.
    pub pid: u32,
    /// For people.
    pub service: String,
    /// For people.
    pub method: String,
    /// For people.
    pub path: String,
    /// For people.
    pub peer: String,
    /// For people.
    pub seconds: f64,
}

/// All stages by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(transparent)]
pub struct Ledger(pub BTreeMap<String, Stage>);

impl Ledger {
    /// Parses the body of `/ledger`.
    pub fn parse(body: &[u8]) -> Result<Self, String> {
        let ledger: Self = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        for stage in ["events", "exchanges", "spans"] {
            if !ledger.0.contains_key(stage) {
                return Err(format!("no stage {stage}"));
            }
        }
        Ok(ledger)
    }

    /// Stages whose `seen` is not the sum of the others.
    pub fn wrong_sums(&self) -> Vec<String> {
        let wrong = self.0.iter().filter(|(_, stage)| {
            let Stage {
                seen,
                exported,
                sampled_out,
                dropped,
                pending,
            } = stage;
            *seen != exported + sampled_out + dropped.values().sum::<u64>() + pending
        });
        wrong
            .map(|(name, stage)| format!("{name} does not add up: {stage:?}"))
            .collect()
    }

    /// Nothing is on its way between a finished request and an acknowledged span.
    pub fn drained(&self) -> bool {
        self.drained_but_for(0)
    }

    /// The same, where so many exchanges have not ended.
    pub fn drained_but_for(&self, open: u64) -> bool {
        let pending = |stage: &str| self.0.get(stage).map(|stage| stage.pending);
        pending("exchanges").is_some_and(|n| n <= open) && pending("spans") == Some(0)
    }

    /// Losses of any stage but those in `except`.
    pub fn losses(&self, except: &[&str]) -> Vec<String> {
        let stages = self.0.iter();
        let stages = stages.filter(|(name, _)| !except.contains(&name.as_str()));
        let all = stages.flat_map(|(name, stage)| {
            stage
                .dropped
                .iter()
                .filter(|(_, count)| **count > 0)
                .map(move |loss| (name, loss))
        });
        all.map(|(name, (reason, count))| format!("{name} dropped {count}: {reason}"))
            .collect()
    }

    /// A stage by its name; an empty one if it is missing.
    pub fn stage(&self, name: &str) -> Stage {
        self.0.get(name).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(spans: &str) -> String {
        let even = r#"{"seen":3,"exported":3,"sampled_out":0,"dropped":{},"pending":0}"#;
        format!(r#"{{"events":{even},"exchanges":{even},"spans":{spans}}}"#)
    }

    #[test]
    fn sums_losses_and_rest() {
        let check = |spans: &str, sums: usize, losses: usize, drained: bool| {
            let ledger = Ledger::parse(body(spans).as_bytes()).expect("valid");
            assert_eq!(
                (
                    ledger.wrong_sums().len(),
                    ledger.losses(&[]).len(),
                    ledger.drained()
                ),
                (sums, losses, drained),
                "{spans}"
            );
        };
        check(
            r#"{"seen":9,"exported":5,"sampled_out":1,"dropped":{"queue_full":3},"pending":0}"#,
            0,
            1,
            true,
        );
        check(
            r#"{"seen":9,"exported":5,"sampled_out":1,"dropped":{"queue_full":2},"pending":0}"#,
            1,
            1,
            true,
        );
        check(
            r#"{"seen":9,"exported":5,"sampled_out":1,"dropped":{"queue_full":0},"pending":3}"#,
            0,
            0,
            false,
        );
    }

    #[test]
    fn what_is_no_ledger() {
        for body in [body(r#"{"seen":1}"#).as_str(), "{}", "[]", ""] {
            assert!(Ledger::parse(body.as_bytes()).is_err(), "{body}");
        }
    }
}
