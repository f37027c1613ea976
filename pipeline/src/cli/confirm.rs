//! Decisions that cannot be taken back are confirmed in words: the name of what they concern, typed or given by `--confirm`.

use std::io::{IsTerminal, Write as _};

use super::output::End;
use crate::ops::failure::Failure;

/// What was typed has to be exactly what is wanted. `to_do` finishes the question ("begin it"), `undone` says what did not happen.
pub(super) fn typed(given: Option<&str>, wanted: &str, to_do: &str, undone: &str) -> Result<(), End> {
    let typed = match given {
        Some(given) => given.to_owned(),
        None if std::io::stdin().is_terminal() => {
            eprint!("Type  {wanted}  to {to_do}: ");
            std::io::stderr().flush()?;
            let mut line = String::new();
            std::io::stdin().read_line(&mut line)?;
            line.trim().to_owned()
        }
        None => String::new(),
    };
    if typed == wanted {
        return Ok(());
    }
    Err(Failure {
        fix: Some(format!("--confirm \"{wanted}\"")),
        ..Failure::new("usage.not_confirmed", format!("{undone}: the confirmation is missing or another one is wanted"))
    }
    .into())
}

/// A reason that says something.
pub(super) fn reason(given: Option<&str>) -> Result<&str, End> {
    match given.map(str::trim) {
        Some(reason) if !reason.is_empty() => Ok(reason),
        _ => Err(Failure::new("usage.arguments", "give a reason (--reason): whoever reads the audit will want to know").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_words_confirm() {
        assert!(typed(Some("shop epoch 2"), "shop epoch 2", "begin it", "nothing was begun").is_ok());
        for text in ["shop epoch 1", "shop epoch 20", "Shop epoch 2", "yes", ""] {
            let Err(End::Failed(failure)) = typed(Some(text), "shop epoch 2", "begin it", "nothing was begun") else {
                panic!("{text} confirmed")
            };
            assert_eq!(failure.code, "usage.not_confirmed");
        }
    }

    #[test]
    fn a_reason_of_blanks_is_none() {
        assert!(reason(Some(" ")).is_err() && reason(None).is_err() && reason(Some(" moved ")).is_ok());
    }
}
