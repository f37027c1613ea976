//! Tests of what one event becomes: several outputs, look-ups, groups.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;

use super::*;

fn event(n: u32, table: &str, fields: Json) -> Event {
    let mut all = json!({"id": format!("e1-0/9-{n}"), "op": "insert", "schema": "public", "table": table, "key": {"id": n}, "before": null,
        "after": {}, "unchanged": [], "commit_lsn": "0/9", "ordinal": n, "xid": 7, "committed_at": "2026-11-22T10:00:00Z"});
    for (name, value) in fields.as_object().expect("fields") {
        all[name] = value.clone();
    }
    Event::parse(Bytes::from(all.to_string())).expect("an event")
}

fn lookups(block: Json) -> Vec<Lookup> {
    Lookup::read(&block).unwrap_or_else(|problems| panic!("{problems:?}"))
}

/// The kitchen: dishes have recipes, recipes have lines.
fn kitchen() -> (Vec<Lookup>, Arc<Tables>) {
    let lookups = lookups(json!({
        "recipe": {"table": "public.recipe", "by": "item_id", "many": true},
        "lines": {"table": "public.recipe_line", "by": ["recipe_id"], "many": true, "missing": "park"},
        "dish": {"table": "public.dish", "by": "id", "columns": ["name"]},
    }));
    let tables = Arc::new(Tables::new(&lookups, &[("public".into(), "sold".into())], 1 << 20));
    for (n, table, after) in [
        (1, "dish", json!({"id": 5, "name": "Soup", "text": "long"})),
        (2, "recipe", json!({"id": 50, "item_id": 5, "valid_from": "2024-01-01", "valid_to": "2026-01-01"})),
        (3, "recipe", json!({"id": 51, "item_id": 5, "valid_from": "2026-01-01", "valid_to": null})),
        (4, "recipe_line", json!({"recipe_id": 50, "what": "onion", "qty": "9.0"})),
        (5, "recipe_line", json!({"recipe_id": 51, "what": "onion", "qty": "0.2500"})),
        (6, "recipe_line", json!({"recipe_id": 51, "what": "water", "qty": "330"})),
    ] {
        tables.note(&event(n, table, json!({ "after": after }))).expect("kept");
    }
    (lookups, tables)
}

const EACH: &str =
    "{{ [after] | with('recipe', 'item_id') | valid_at('day', 'recipe.valid_from', 'recipe.valid_to') | with('lines', 'recipe.id') }}";

fn named(fact: Option<&str>) -> String {
    fact.unwrap_or("none").to_owned()
}

fn bodies(outputs: &[Output]) -> Vec<(String, String)> {
    let body = |o: &Output| match o.body.as_ref().expect("mapped") {
        Ok(body) => body.clone(),
        Err(fault) => fault.to_string(),
    };
    outputs.iter().map(|o| (o.idempotency_key.clone(), body(o))).collect()
}

#[test]
fn an_event_becomes_an_output_for_each_line_of_the_recipe_that_is_valid() {
    let (lookups, tables) = kitchen();
    let map = json!({"what": "{{ item.lines.what }}", "qty": "{{ item.lines.qty | times(item.qty) }}", "dish": "{{ lookup('dish', after.item_id).name }}", "n": "{{ index }}"});
    let definition = Definition {
        each: Some(EACH),
        id: Some("sale:{{ key.id }}:{{ item.lines.what }}"),
        key: Some("{{ item.lines.what }}"),
        map: Some(&map),
        lookups: &lookups,
        ..Definition::default()
    };
    let mapping = Mapping::define(definition).unwrap_or_else(|problems| panic!("{problems:?}"));
    let sold = event(9, "sold", json!({"after": {"item_id": "5", "qty": "2", "day": "2026-11-22"}}));
    let outputs = mapping.outputs(&sold, Some(&tables), &named).expect("mapped");
    assert_eq!(
        bodies(&outputs),
        [
            ("sale:9:onion".to_owned(), r#"{"what":"onion","qty":"0.5","dish":"Soup","n":0}"#.to_owned()),
            ("sale:9:water".to_owned(), r#"{"what":"water","qty":"660","dish":"Soup","n":1}"#.to_owned())
        ]
    );
    assert_eq!(outputs[1].key.as_deref(), Some("water"));
    // What one output lacks leaves the others alone, and a dish without a recipe is nothing to send.
    let map = json!({"qty": "{{ item.lines.qty | minor(2) }}"});
    let mapping = Mapping::define(Definition { map: Some(&map), ..definition }).expect("sound");
    let odd = event(
        5,
        "recipe_line",
        json!({"key": {"id": 5}, "commit_lsn": "0/A", "id": "e1-0/A-5", "after": {"recipe_id": 51, "what": "onion", "qty": "x"}}),
    );
    tables.note(&odd).expect("kept");
    let outputs = bodies(&mapping.outputs(&sold, Some(&tables), &named).expect("mapped"));
    assert_eq!(
        (outputs[0].1.as_str(), outputs[1].1.as_str()),
        (r#"`map.qty`: invalid operation (not a decimal number of at most 28 digits)"#, r#"{"qty":33000}"#)
    );
    let other = event(9, "sold", json!({"after": {"item_id": 6, "qty": "2", "day": "2026-11-22"}}));
    assert_eq!(mapping.outputs(&other, Some(&tables), &named), Ok(Vec::new()));
}

#[test]
fn names_come_first_and_are_told_apart() {
    let map = json!({"v": "{{ item }}"});
    let definition = Definition { each: Some("{{ after.list }}"), id: Some("{{ item }}"), map: Some(&map), ..Definition::default() };
    let mapping = Mapping::define(definition).expect("sound");
    let said = |list: Json| {
        mapping.outputs(&event(1, "t", json!({"after": {"list": list}})), None, &named).map(|o| o.len()).map_err(|f| (f.code, f.path))
    };
    assert_eq!(said(json!(["a", "b", 3])), Ok(3));
    assert_eq!(said(json!([])), Ok(0));
    assert_eq!(said(json!(["a", "b", "a"])), Err(("mapping.duplicate_id", "id".to_owned())));
    assert_eq!(said(json!(["a", null])), Err(("mapping.failed", "id".to_owned())));
    assert_eq!(said(json!({"a": 1})), Err(("mapping.failed", "each".to_owned())));
    assert_eq!(said(json!(null)), Err(("mapping.failed", "each".to_owned())));
    assert_eq!(said(json!((0..=OUTPUTS_MAX).collect::<Vec<_>>())), Err(("mapping.failed", "each".to_owned())));
}

#[test]
fn a_row_that_is_not_known_is_named_by_a_code_of_its_own() {
    let (lookups, tables) = kitchen();
    let map = json!({"dish": "{{ lookup('dish', after.item_id).name }}"});
    let definition = Definition { map: Some(&map), lookups: &lookups, ..Definition::default() };
    let mapping = Mapping::define(definition).expect("sound");
    let outputs = mapping.outputs(&event(9, "sold", json!({"after": {"item_id": 77}})), Some(&tables), &named).expect("named");
    let reason = outputs[0].body.clone().expect("a map").expect_err("no such dish").reason();
    assert_eq!((reason.code.as_str(), reason.message.as_str()), ("mapping.lookup_missing", "`map.dish`: lookup `dish` finds nothing"));
    // Of `columns` only those are kept.
    let map = json!({"dish": "{{ lookup('dish', 5).text }}"});
    let mapping = Mapping::define(Definition { map: Some(&map), ..definition }).expect("sound");
    let outputs = mapping.outputs(&event(9, "sold", json!({})), Some(&tables), &named).expect("named");
    assert!(matches!(&outputs[0].body, Some(Err(fault)) if fault.code == "mapping.failed"));
}

#[test]
fn kept_rows_follow_every_change_and_take_no_more_than_they_may() {
    let (lookups, tables) = kitchen();
    let (rows, bytes) = tables.size();
    assert_eq!(rows, 6);
    let dish = lookups.iter().find(|l| l.name == "dish").expect("there");
    let name =
        |id: i64| tables.find(dish, &[Value::from(id)]).expect("few").first().map(|row| row.get_attr("name").expect("kept").to_string());
    let change = |n: u32, lsn: u32, op: &str, fields: Json| {
        let mut all = json!({"op": op, "id": format!("e1-0/{lsn:X}-{n}"), "commit_lsn": format!("0/{lsn:X}")});
        all.as_object_mut().expect("fields").extend(fields.as_object().expect("fields").clone());
        event(n, "dish", all)
    };
    // A large value that was not touched is not sent; an older image changes nothing.
    tables.note(&change(1, 10, "update", json!({"after": {"id": 8}, "unchanged": ["name"]}))).expect("kept");
    assert_eq!((name(5), name(8)), (None, Some("Soup".to_owned())));
    tables.note(&change(1, 5, "update", json!({"after": {"id": 8, "name": "older"}}))).expect("kept");
    assert_eq!(name(8), Some("Soup".to_owned()));
    tables.note(&change(1, 11, "delete", json!({"after": null}))).expect("kept");
    assert_eq!((name(8), tables.size().0), (None, 5));
    tables.note(&event(2, "recipe", json!({"op": "truncate", "key": null, "after": null}))).expect("emptied");
    tables.note(&event(2, "recipe_line", json!({"op": "truncate", "key": null, "after": null}))).expect("emptied");
    assert_eq!(tables.size(), (0, 0), "{bytes}");
    assert_eq!(tables.note(&event(1, "dish", json!({"key": {}}))), Err(TablesError::Keyless("public.dish".into())));
    let small = Tables::new(&lookups, &[], 2_000);
    let full = (1..100).find_map(|n| small.note(&event(n, "dish", json!({"after": {"id": n, "name": "x".repeat(100)}}))).err());
    assert!(matches!(full, Some(TablesError::Full { limit: 2_000, rows: 2..20 })), "{full:?}");
}

#[test]
fn the_last_image_stands_in_for_a_row_that_the_server_did_not_send() {
    let (_, tables) = kitchen();
    tables.note(&event(9, "sold", json!({"after": {"id": 9, "state": "fired", "n": "1.50"}}))).expect("kept");
    let update = event(9, "sold", json!({"op": "update", "after": {"id": 9, "state": "voided"}}));
    assert_eq!(tables.before(&update).as_deref(), Some(r#"{"id":9,"state":"fired","n":"1.50"}"#));
    assert_eq!(tables.before(&event(9, "sold", json!({"op": "update", "before": {"id": 9}}))), None, "it was sent");
    assert_eq!(tables.before(&event(8, "sold", json!({"op": "delete", "after": null}))), None, "never seen");
}

#[test]
fn a_group_sees_all_events_of_its_transaction() {
    let map = json!({
        "order": "{{ (events | selectattr('table', 'eq', 'order') | first).row.id }}", "lines": "{{ events | selectattr('table', 'eq', 'line') | map(attribute='after.qty') | list }}",
        "ops": "{{ events | map(attribute='op') | join(',') }}", "at": "{{ committed_at }}",
    });
    let definition = Definition {
        when: Some("{{ op != 'delete' }}"),
        key: Some("{{ after.id if table == 'order' else after.order_id }}"),
        id: Some("placed:{{ id }}"),
        map: Some(&map),
        grouped: true,
        ..Definition::default()
    };
    let mapping = Mapping::define(definition).unwrap_or_else(|problems| panic!("{problems:?}"));
    let events = [
        event(1, "order", json!({"after": {"id": 7}})),
        event(2, "line", json!({"after": {"order_id": 7, "qty": 2}})),
        event(3, "line", json!({"after": {"order_id": 7, "qty": 3}})),
    ];
    for event in &events {
        assert_eq!(mapping.joins(event, None), Ok(Some("7".to_owned())));
    }
    assert_eq!(mapping.joins(&event(4, "line", json!({"op": "delete", "after": null})), None), Ok(None));
    let group = grouped_event(&events.iter().collect::<Vec<_>>()).expect("an event");
    let outputs = mapping.outputs(&group, None, &named).expect("mapped");
    assert_eq!(
        bodies(&outputs),
        [(
            "placed:e1-0/9-1".to_owned(),
            r#"{"order":7,"lines":[2,3],"ops":"insert,insert,insert","at":"2026-11-22T10:00:00Z"}"#.to_owned()
        )]
    );
}

#[test]
fn what_makes_no_sense_is_refused_with_its_place() {
    let map = json!({"a": "{{ item.x }}", "b": "{{ lookup('dsh', 1) }}"});
    let (lookups, _) = kitchen();
    let said = |definition: Definition<'_>| {
        let problems = Mapping::define(Definition { lookups: &lookups, ..definition }).expect_err("refused");
        problems.into_iter().map(|p| (p.path, p.help.unwrap_or_default())).collect::<Vec<_>>()
    };
    let texts = |all: &[(String, String)]| all.iter().map(|(path, help)| format!("{path}: {help}")).collect::<Vec<_>>();
    let all = said(Definition { map: Some(&map), id: Some("constant"), each: Some("{{ x }} {{ y }}"), ..Definition::default() });
    assert_eq!(
        texts(&all),
        [
            "each: write `each: \"{{ lookup('lines', after.recipe_id) }}\"`",
            "id: write `id: \"sale:{{ key.id }}\"`",
            "map.b: did you mean `dish`?"
        ]
    );
    let all = said(Definition { map: Some(&map), grouped: true, id: Some("{{ after.id }}{{ idempotency_key }}"), ..Definition::default() });
    assert_eq!(all.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["id", "id", "map.a", "map.b"]);
    let all = said(Definition { each: Some("{{ [after] | with('dsh') }}"), ..Definition::default() });
    assert_eq!(all.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["each", "each", "each"]);
    let problems = Lookup::read(&json!({"a-b": {"table": "x", "many": 3, "missing": "wait", "keys": 1}})).expect_err("much is wrong");
    let paths: Vec<_> = problems.iter().map(|p| p.path.as_str()).collect();
    assert_eq!(paths, ["lookup.a-b", "lookup.a-b.keys", "lookup.a-b.table", "lookup.a-b.by", "lookup.a-b.many", "lookup.a-b.missing"]);
}
