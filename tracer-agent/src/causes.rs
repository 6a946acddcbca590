//! What is said of an error: it, and what caused it.

use std::error::Error;

/// An error and its causes on one line: transport errors say nothing by themselves.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !line.ends_with(&cause_text) {
            line.push_str(": ");
            line.push_str(&cause_text);
        }
        source = cause.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let inner = std::io::Error::other("refused");
        assert_eq!(chain(&inner), "refused");
        let error = anyhow::Error::from(inner)
            .context("no answer")
            .context("not sent");
        let error: Box<dyn Error + Send + Sync> = error.into();
        assert_eq!(chain(&*error), "not sent: no answer: refused");
        let repeats = anyhow::anyhow!("refused").context("not sent: refused");
        let repeats: Box<dyn Error + Send + Sync> = repeats.into();
        assert_eq!(chain(&*repeats), "not sent: refused");
    }
}
