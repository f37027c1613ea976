use bytes::Bytes;
use serde_json::json;

use super::*;

fn event(fields: Json) -> Event {
    let mut all = json!({"id": "e1-0/16B3748-17", "op": "update", "schema": "public", "table": "check_", "key": {"id": 7}, "before": null,
        "after": {}, "commit_lsn": "0/16B3748", "ordinal": 17, "xid": 753, "committed_at": "2026-11-22T03:30:00.123456Z"});
    for (name, value) in fields.as_object().expect("fields") {
        all[name] = value.clone();
    }
    Event::parse(Bytes::from(all.to_string())).expect("an event")
}

fn mapping(map: Json) -> Mapping {
    Mapping::compile(None, Some(&map)).unwrap_or_else(|problems| panic!("{problems:?}"))
}

fn mapped(map: Json, after: Json) -> Json {
    match mapping(map).apply(&event(json!({ "after": after })), "k") {
        Ok(Mapped::Body(body)) => serde_json::from_str(&body).expect("JSON"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn leaves_keep_their_types_and_texts_are_filled_in() {
    let map = json!({
        "id": "{{ after.id }}",
        "guest": {"name": "{{ after.first }} {{ after.last | upper }}", "active": "{{ after.state == 'open' }}", "note": "{{ after.note }}"},
        "tags": ["pos", "{{ after.tags }}", 7],
        "tier": "{{ {1: 'bronze', 2: 'silver'}[after.tier] | default('none') }}",
        "raw": "{{ after }}",
        "key": "{{ idempotency_key }}",
        "constant": {"a": null},
    });
    let after = json!({"id": 9007199254740993_i64, "first": "Ada", "last": "Lovelace", "state": "open", "note": null, "tags": ["x", 1.5], "tier": 2});
    assert_eq!(
        mapped(map, after.clone()),
        json!({
            "id": 9007199254740993_i64, "guest": {"name": "Ada LOVELACE", "active": true, "note": null}, "tags": ["pos", ["x", 1.5], 7],
            "tier": "silver", "raw": after, "key": "k", "constant": {"a": null},
        })
    );
}

#[test]
fn the_same_event_gives_the_same_bytes() {
    let mapping = mapping(json!({"b": "{{ after }}", "a": "{{ {'y': 1, 'x': after.id} }}"}));
    let event = event(json!({"after": {"z": 1, "id": 2}}));
    assert_eq!(mapping.apply(&event, "k"), Ok(Mapped::Body(r#"{"b":{"z":1,"id":2},"a":{"y":1,"x":2}}"#.into())));
}

#[test]
fn money_is_exact() {
    let map = json!({
        "minor": "{{ after.total | minor }}", "yen": "{{ after.yen | minor(0) }}", "line": "{{ after.qty | times(after.price) | decimal(2) }}",
        "sum": "{{ after.total | plus('0.10') | minus(after.tip) }}", "half": "{{ '2.345' | decimal }}", "down": "{{ '-2.345' | decimal(2) }}",
    });
    let after = json!({"total": "1234567890123.45", "yen": 500, "qty": "3.000", "price": "0.335", "tip": "0.30"});
    assert_eq!(
        mapped(map, after),
        json!({"minor": 123456789012345_i64, "yen": 500, "line": "1.01", "sum": "1234567890123.25", "half": "2.35", "down": "-2.35"})
    );
}

#[test]
fn null_stays_null_and_what_is_not_there_is_an_error() {
    let filters = ["minor", "decimal", "plus(1)", "times(after.none)", "date_in('UTC')", "business_date('UTC')", "sha256", "email"];
    for filter in filters {
        let said = mapped(json!({"x": format!("{{{{ after.none | {filter} }}}}")}), json!({"none": null}));
        assert_eq!(said, json!({"x": null}), "{filter}");
        let fault = mapping(json!({"x": format!("{{{{ after.gone | {filter} }}}}")})).apply(&event(json!({"after": {"none": 1}})), "k");
        assert_eq!(fault.expect_err(filter).what, "the event does not have it", "{filter}");
    }
    for (filter, value) in [
        ("minor", json!("1.234")),
        ("minor", json!("x")),
        ("decimal", json!("1".repeat(40))),
        ("plus(1)", json!([1])),
        ("date_in('Mars/Base')", json!("2026-11-22T10:00:00Z")),
    ] {
        let fault = mapping(json!({"x": format!("{{{{ after.v | {filter} }}}}")})).apply(&event(json!({"after": {"v": value}})), "k");
        assert_eq!(fault.expect_err(filter).what, "invalid operation", "{filter}");
    }
}

#[test]
fn days_follow_the_restaurants_zone() {
    let map = json!({
        "utc": "{{ committed_at | date_in('UTC') }}", "day": "{{ committed_at | date_in('America/Chicago') }}",
        "business": "{{ after.late | business_date('America/Chicago') }}",
        "later": "{{ after.late | business_date('America/Chicago', begins='01:00') }}",
        "time": "{{ after.late | time_in('America/Chicago') }}",
    });
    assert_eq!(
        mapped(map, json!({"late": "2026-11-22T08:30:00Z"})),
        json!({"utc": "2026-11-22", "day": "2026-11-21", "business": "2026-11-21", "later": "2026-11-22", "time": "2026-11-22T02:30:00-06:00"})
    );
}

#[test]
fn people_are_hashed_and_addresses_normalised() {
    let map = json!({"email": "{{ after.email | email }}", "hash": "{{ after.email | email | sha256 }}", "none": "{{ 'nobody' | email }}"});
    assert_eq!(
        mapped(map, json!({"email": " Ada@Example.COM "})),
        json!({"email": "ada@example.com", "hash": "b5fc85e55755f9e0d030a10ab4429b6b2944855f9a0d60077fe832becbc41d72", "none": null})
    );
}

#[test]
fn what_changed_is_known_or_an_error() {
    let changed = |event: &Event| {
        let mapping = mapping(json!({"price": "{{ changed('price') }}"}));
        mapping.apply(event, "k").map_err(|fault| fault.to_string())
    };
    let yes = |says: bool| Ok(Mapped::Body(format!("{{\"price\":{says}}}")));
    assert_eq!(changed(&event(json!({"op": "insert", "after": {"price": 1}}))), yes(true));
    assert_eq!(changed(&event(json!({"before": {"price": 1}, "after": {"price": 1}}))), yes(false));
    assert_eq!(changed(&event(json!({"before": {"price": 2}, "after": {"price": 1}}))), yes(true));
    assert_eq!(changed(&event(json!({"unchanged": ["price"], "after": {}}))), yes(false));
    assert_eq!(changed(&event(json!({"key": {"price": 1}, "after": {"price": 1}}))), yes(false));
    let why = changed(&event(json!({"after": {"price": 1}}))).expect_err("no image from before");
    assert!(why.contains("REPLICA IDENTITY FULL"), "{why}");
}

#[test]
fn when_filters_by_a_boolean_alone() {
    let decide = |when: &str, after: Json| {
        let mapping = Mapping::compile(Some(when), None).unwrap_or_else(|problems| panic!("{problems:?}"));
        mapping.apply(&event(json!({ "after": after })), "k").map_err(|fault| (fault.path, fault.what))
    };
    assert_eq!(decide("{{ after.active and after.total > 3 }}", json!({"active": true, "total": 4})), Ok(Mapped::Whole));
    assert_eq!(decide("{{ after.active and after.total > 3 }}", json!({"active": false})), Ok(Mapped::Filtered));
    let both = Mapping::compile(Some("{{ after.active }}"), Some(&json!({"total": "{{ after.total }}"}))).expect("sound");
    assert_eq!(both.apply(&event(json!({"after": {"active": false}})), "k"), Ok(Mapped::Filtered), "it has no total, and needs none");
    assert_eq!(decide("{{ row.name }}", json!({"name": "x"})), Err(("when".into(), "is neither true nor false".into())));
    assert_eq!(decide("{{ after.gone }}", json!({})), Err(("when".into(), "the event does not have it".into())));
}

#[test]
fn a_failure_names_the_leaf_and_no_value() {
    let mapping = mapping(json!({
        "fine": "{{ after.id }}",
        "deep": {"broken": "{{ after.name | minor }}", "lines": "a\nb {{ after.id }}\n"},
        "long": "{{ range(100000) | sum }}{{ range(100000) | sum }}{{ range(100000) | sum }}",
    }));
    let fault = mapping.apply(&event(json!({"after": {"id": 1, "name": "hunter2"}})), "k").expect_err("a name is no money");
    assert_eq!(fault.path, "map.deep.broken");
    assert!(!fault.reason().message.contains("hunter2"), "{fault:?}");
    let fault = mapping.apply(&event(json!({"after": {"id": 1, "name": "1.00"}})), "k").expect_err("too long a way");
    assert_eq!((fault.path.as_str(), fault.what.as_str()), ("map.long", "takes more than 100000 steps"));
    let fault = self::mapping(json!({"fine": "{{ after.id }}"})).apply(&event(json!({"after": {}})), "k").expect_err("no id");
    assert_eq!((fault.path.as_str(), fault.what.as_str()), ("map.fine", "the event does not have it"));
}

#[test]
fn every_wrong_name_is_found_before_anything_is_delivered() {
    let map = json!({
        "a": "{{ afte.id }}", "b": "{{ after.id | uper }}", "c": "{{ chnged('x') }}", "d": "{{ after.id is definde }}",
        "e": "{{ after.id is not definde }}", "f": "text {{ after.id | trimm }}", "g": "{{ after. }}", "h": "{% if x %}{% endif %}",
        "i": {"j": ["{{ 1 + }}"]}, "fine": "{{ after.x if op == 'insert' and before is none else key['y'] | default(none, boolean=true) }}",
    });
    let problems = Mapping::compile(Some("after.active"), Some(&map)).expect_err("much is wrong");
    let said: Vec<_> = problems.iter().map(|p| (p.path.as_str(), p.help.as_deref().unwrap_or_default())).collect();
    assert_eq!(
        said,
        [
            ("when", "write `when: \"{{ after.active }}\"`"),
            ("map.a", "did you mean `after`?"),
            ("map.b", "did you mean `upper`?"),
            ("map.c", "did you mean `changed`?"),
            ("map.d", "did you mean `defined`?"),
            ("map.e", "did you mean `defined`?"),
            ("map.f", "did you mean `trim`?"),
            ("map.g", "write Jinja's expressions, as `{{ after.id }}`"),
            ("map.h", "only expressions are evaluated: `{{ … }}`"),
            ("map.i.j.0", "write Jinja's expressions, as `{{ after.id }}`"),
        ]
    );
}

#[test]
fn the_columns_that_are_read_are_known() {
    let map = json!({"a": "{{ after.id }} {{ before['total'] }}", "b": "{{ changed('state') and row.x.deep }}", "c": "{{ key }}"});
    let mapping = Mapping::compile(Some("{{ row.active }}"), Some(&map)).expect("sound");
    assert_eq!(mapping.columns(), ["active", "id", "state", "total", "x"]);
}
