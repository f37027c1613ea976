//! Leaves nothing behind: the plan that takes away what a pipeline has on its source, whoever made it. Pure.

use crate::capture::CaptureError;
use crate::capture::catalog::{identifier, sql};
use crate::config;

use super::facts::{Facts, RoleFacts};
use super::plan::{Plan, Statement, Step, primary_only, role_there};
use super::{Options, title};

/// Makes the plan. What others may need stays, and is said: a role while it owns something, has rights in other databases, or other
/// slots show that another pipeline may use it.
pub(super) fn plan(source: &config::Source, pipeline: &str, facts: &Facts, options: &Options) -> Result<Plan, CaptureError> {
    primary_only(facts)?;
    let header = vec![
        format!("Removes: {}", title(source, pipeline, facts)),
        "Every statement can run twice. What is in the journal and in the targets stays. End the pipeline first.".to_owned(),
        "Afterwards the pipeline cannot go on where it was: a new set-up begins a new epoch and loads the tables again.".to_owned(),
    ];
    let steps =
        vec![slot(source, facts), publication(source, facts), role(facts, &facts.backfill, options), role(facts, &facts.stream, options)];
    Ok(Plan { header, steps })
}

/// Whether nobody streams from the slot, so that a removal is not broken off at its first step.
///
/// # Errors
/// `setup.slot_in_use`.
pub fn removable(facts: &Facts) -> Result<(), CaptureError> {
    let Some((slot, pid)) = facts.slot.as_ref().and_then(|slot| Some((slot, slot.active_pid?))) else { return Ok(()) };
    Err(CaptureError::Definite {
        code: "setup.slot_in_use",
        what: format!("slot \"{}\" is in use; nothing was removed", slot.slot_name),
        why: format!("process {pid} streams from it"),
        fix: "end the pipeline and its standbys, then run it again; `tillstream slot show` names who reads".to_owned(),
    })
}

fn slot(source: &config::Source, facts: &Facts) -> Step {
    let mut step = Step { title: format!("the slot \"{}\", first: it is what keeps WAL", source.slot), ..Step::default() };
    match &facts.slot {
        None => step.notes.push("there is none".to_owned()),
        Some(slot) => {
            if let Some(pid) = slot.active_pid {
                step.notes.push(format!("IN USE by process {pid}: end the pipeline (and its standbys) first"));
            }
            step.statements.push(Statement(sql::drop_slot_once(&source.slot)));
        }
    }
    step
}

fn publication(source: &config::Source, facts: &Facts) -> Step {
    let mut step = Step { title: format!("the publication \"{}\"", source.publication), ..Step::default() };
    match &facts.publication {
        None => step.notes.push("there is none".to_owned()),
        Some(_) => step.statements.push(Statement(format!("DROP PUBLICATION IF EXISTS {};", identifier(&source.publication)))),
    }
    step
}

fn role(facts: &Facts, role: &RoleFacts, options: &Options) -> Step {
    let name = identifier(&role.name);
    let mut step = Step { title: format!("the role {name} and what was granted to it in this database"), ..Step::default() };
    if !role.exists {
        step.notes.push("there is none".to_owned());
        return step;
    }
    let mut statements: Vec<String> = Vec::new();
    if facts.other_slots.is_empty() || options.drop_roles {
        let granted = &role.granted;
        statements.extend(granted.columns.iter().map(|(table, columns)| sql::revoke_columns(&role.name, table, columns)));
        statements.extend(granted.tables.iter().map(|table| format!("REVOKE SELECT ON {table} FROM {name};")));
        statements.extend(granted.schemas.iter().map(|s| format!("REVOKE USAGE ON SCHEMA {} FROM {name};", identifier(s))));
        if granted.connect {
            statements.push(format!("REVOKE CONNECT ON DATABASE {} FROM {name};", identifier(&facts.server.database)));
        }
        if role.bound_by.is_empty() {
            statements.push(format!("DROP ROLE {name};"));
        } else {
            step.notes.push(format!("it stays: {}", role.bound_by.join(", ")));
            step.notes.push(format!("  by hand, when that is settled:  DROP ROLE {name};"));
        }
    } else {
        step.notes.push(format!("it stays with its grants: other pipelines may use it (slots {})", facts.other_slots.join(", ")));
        step.notes.push("  --drop-roles, if none does".to_owned());
    }
    if !statements.is_empty() {
        step.statements.push(Statement(sql::only_if(&role_there(&role.name), &statements)));
    }
    step
}

#[cfg(test)]
mod tests {
    use super::super::facts::Granted;
    use super::super::testing::{facts, source};
    use super::*;
    use crate::capture::catalog::{PublicationFacts, SlotFacts};

    fn installed() -> Facts {
        let mut facts = facts(150_018);
        facts.slot = Some(SlotFacts::default());
        facts.publication = Some(PublicationFacts::default());
        facts.stream.exists = true;
        facts.backfill.exists = true;
        facts.backfill.granted = Granted { columns: vec![("public.t".to_owned(), vec!["id".to_owned()])], ..Granted::default() };
        facts
    }

    #[test]
    fn the_slot_goes_first_and_the_roles_last() {
        let text = plan(&source(), "demo", &installed(), &Options::default()).expect("a plan").to_string();
        let places: Vec<usize> = [
            "pg_drop_replication_slot",
            "DROP PUBLICATION",
            "REVOKE SELECT (id) ON public.t",
            "DROP ROLE tillstream_backfill",
            "DROP ROLE tillstream;",
        ]
        .iter()
        .map(|part| text.find(part).unwrap_or_else(|| panic!("{part} in {text}")))
        .collect();
        assert!(places.is_sorted(), "{text}");
    }

    #[test]
    fn what_others_may_need_stays() {
        let mut shared = installed();
        shared.other_slots = vec!["other (pos2)".to_owned()];
        let text = plan(&source(), "demo", &shared, &Options::default()).expect("a plan").to_string();
        assert!(!text.contains("    DROP ROLE") && text.contains("other (pos2)"), "{text}");
        let all = Options { drop_roles: true, ..Options::default() };
        assert!(plan(&source(), "demo", &shared, &all).expect("a plan").to_string().contains("    DROP ROLE tillstream;"));
        let mut owner = installed();
        owner.stream.bound_by = vec!["it owns objects".to_owned()];
        let text = plan(&source(), "demo", &owner, &Options::default()).expect("a plan").to_string();
        assert!(text.contains("it stays: it owns objects") && !text.contains("    DROP ROLE tillstream;"), "{text}");
    }
}
