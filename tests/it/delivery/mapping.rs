//! Connectors with `when` and `map`: what reaches the target, what is filtered, and what becomes a dead letter and is redriven by a mended file.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use tillstream::config::Connector;
use tillstream::control::{self, Writer};
use tillstream::delivery::dead_letter::{self, Wanted};
use tillstream::journal::Journal;
use tillstream_connectors::mapping::Mapping;

use super::http::{Api, mapped_target};
use super::pos::{Capture, catch_up, connector, delete, insert, journal, truncate, update};

/// Sends rows of `a` with a quantity, as JSON of its own.
fn loyalty(url: &str, mode: &str, map: Value) -> Connector {
    let mapping = Mapping::compile(Some("{{ op != 'delete' and after.qty > 2 }}"), Some(&map)).expect("sound");
    let target = mapped_target(url, json!({"mode": mode}));
    Connector { mapping: Some(Arc::new(mapping)), tables: vec![("public".into(), "a".into())], ..connector("loyalty", target) }
}

pub(super) async fn sold() -> (tempfile::TempDir, Arc<dyn Journal>) {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = journal(dir.path(), 1).await;
    let mut capture = Capture::new(journal.as_ref(), 1).await;
    for id in 0..20 {
        capture.write(0, &[insert("a", id, id), insert("b", id, 7)]).await;
    }
    capture.write(0, &[update("a", 1, 50), delete("a", 2), truncate("a")]).await;
    capture.flush().await;
    (dir, journal)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mapped_event_is_what_the_target_sees_one_by_one_and_in_lists() {
    for mode in ["single", "batch"] {
        let (_dir, journal) = sold().await;
        let (api, url) = Api::start(|_, _| axum::response::IntoResponse::into_response(axum::Json(json!({"ok": true})))).await;
        let map = json!({"id": "{{ idempotency_key }}", "points": "{{ after.qty * 10 }}", "what": "{{ op }} of {{ key.id }}"});
        let stats = catch_up(&journal, vec![loyalty(&url, mode, map)]).await.expect("catches up");
        api.assert_once(18);
        let mut said: Vec<(u64, String)> =
            api.items().iter().map(|item| (item["points"].as_u64().unwrap_or(0), item["what"].to_string())).collect();
        said.sort();
        assert_eq!(said.first(), Some(&(30, "\"insert of 3\"".to_owned())), "{mode}");
        assert_eq!(said.last(), Some(&(500, "\"update of 1\"".to_owned())), "{mode}");
        let stats = stats.connector("loyalty").expect("there");
        // Three small quantities and a deletion; other tables and the truncate were never this connector's.
        assert_eq!((stats.filtered.load(Ordering::Relaxed), stats.rejected.load(Ordering::Relaxed)), (4, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_cannot_be_mapped_is_parked_and_a_mended_map_redrives_it() {
    for mode in ["single", "batch"] {
        let (_dir, journal) = sold().await;
        let (api, url) = Api::start(|_, _| axum::response::IntoResponse::into_response(axum::Json(json!({"ok": true})))).await;
        let broken = json!({"id": "{{ idempotency_key }}", "deep": {"points": "{{ after.points if after.qty in (5, 6) else 1 }}"}});
        let stats = catch_up(&journal, vec![loyalty(&url, mode, broken.clone())]).await.expect("catches up");
        api.assert_once(16);
        assert_eq!(stats.connector("loyalty").expect("there").rejected.load(Ordering::Relaxed), 2);

        let state = control::replay(journal.as_ref()).await.expect("replays");
        let letters: Vec<_> = state.dead_letters().map(|l| (l.letter.code.clone(), l.letter.message.clone())).collect();
        let parked = ("mapping.failed".to_owned(), "`map.deep.points`: the event does not have it".to_owned());
        assert_eq!(letters, [parked.clone(), parked], "{mode}");
        // The mended file wants one of them, and not the other.
        let mapping =
            Mapping::compile(Some("{{ after.qty != 6 }}"), Some(&json!({"id": "{{ idempotency_key }}", "points": "{{ after.qty }}"})));
        let mended = Connector { mapping: Some(Arc::new(mapping.expect("sound"))), ..loyalty(&url, mode, json!({})) };
        let would = async |connector: &Connector| {
            let all = dead_letter::diagnose(&state, &Wanted::default(), std::slice::from_ref(connector), "pos", journal.as_ref()).await;
            all.expect("diagnosed").iter().map(|d| (d.sent, d.filtered, d.fails, d.not_taken)).collect::<Vec<_>>()
        };
        assert_eq!(would(&loyalty(&url, mode, broken)).await, [(0, 0, 2, 0)]);
        assert_eq!(would(&mended).await, [(1, 1, 0, 0)]);
        assert_eq!(would(&Connector { ops: vec![tillstream_schemas::Op::Delete], ..mended.clone() }).await, [(0, 0, 0, 2)]);
        let mut operator = Writer::take_operator(journal.clone(), "test", "pos", &state, "test").await.expect("takes over");
        dead_letter::redrive(&mut operator, &state, &Wanted::default(), "test").await.expect("asks");
        let stats = catch_up(&journal, vec![mended]).await.expect("catches up");
        api.assert_once(17);
        assert_eq!(stats.connector("loyalty").expect("there").redriven.load(Ordering::Relaxed), 2);
        assert_eq!(control::replay(journal.as_ref()).await.expect("replays").dead_letters().count(), 0);
    }
}
