//! What the vendors' own documents say: requests that our sinks send fit their schemas, and answers that fit their schemas are read right.
//!
//! The documents are not ours to copy, so they are read from beside the repository. Continuous integration has them; elsewhere a test that misses
//! them says so and passes.

use std::path::PathBuf;

use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::{Seen, Server, answer, deliver, item, klaviyo, lane, now, said, square, status, unmapped, webhook};
use crate::harness::root;

fn document(name: &str) -> Option<Value> {
    let path: PathBuf = root().join("../shared/contracts").join(name);
    match std::fs::read(&path) {
        Ok(bytes) => Some(serde_json::from_slice(&bytes).expect("JSON")),
        Err(error) if std::env::var_os("CI").is_some() => panic!("the vendor's document {name} is not where CI has it: {error}"),
        Err(_) => {
            println!("skipped: the vendor's document {name} is not here");
            None
        }
    }
}

/// A vendor's OpenAPI document.
struct Contract {
    document: Value,
    /// Its schemas as JSON Schema.
    components: Value,
}

impl Contract {
    fn read(name: &str) -> Option<Contract> {
        let document = document(name)?;
        let mut components = document["components"].clone();
        as_json_schema(&mut components);
        Some(Contract { document, components })
    }

    fn operation(&self, path: &str) -> &Value {
        self.document.pointer(&format!("/paths/{}/post", path.replace('/', "~1"))).expect("described")
    }

    /// What a value lacks that the schema wants.
    fn problems(&self, schema: &Value, value: &Value) -> Vec<String> {
        let mut schema = schema.clone();
        as_json_schema(&mut schema);
        schema["components"] = self.components.clone();
        let validator = jsonschema::options().should_validate_formats(true).build(&schema).expect("a schema");
        validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect()
    }

    /// Asserts that a request is one that the document describes.
    fn assert_request(&self, seen: &Seen) {
        assert_eq!(seen.method, "POST");
        let operation = self.operation(&seen.path);
        let content = operation["requestBody"]["content"].as_object().expect("described");
        let (kind, body) = content.iter().next().expect("one");
        assert_eq!(seen.header("content-type"), kind);
        assert_eq!(self.problems(&body["schema"], &seen.json()), Vec::<String>::new(), "{}", seen.json());
        for parameter in operation["parameters"].as_array().expect("a list").iter().filter(|p| p["in"] == "header" && p["required"] == true)
        {
            let name = parameter["name"].as_str().expect("text");
            assert!(!seen.header(name).is_empty(), "{name} is required");
            // The one we were written against is the one that the document describes.
            assert!(parameter["schema"].get("default").is_none_or(|default| default == seen.header(name)), "{name}");
        }
    }

    /// Asserts that an answer is one that the document describes, so that what we make of it counts.
    fn assert_answer(&self, path: &str, status: u16, body: &Value) {
        let responses = &self.operation(path)["responses"];
        let class = format!("{}XX", status / 100);
        let response = [status.to_string(), class].into_iter().find_map(|key| responses.get(&key).cloned());
        // Square describes one answer, errors included.
        let mut response = response.unwrap_or_else(|| responses["200"].clone());
        if let Some(reference) = response["$ref"].as_str() {
            response = self.document.pointer(reference.trim_start_matches('#')).expect("there").clone();
        }
        let Some(content) = response["content"].as_object() else { return assert!(body.is_null(), "no body is described") };
        let schema = &content.values().next().expect("one")["schema"];
        assert_eq!(self.problems(schema, body), Vec::<String>::new(), "{status} {body}");
    }
}

/// OpenAPI 3.0 says `nullable` where JSON Schema lists null; and here nothing may be sent that is not described, nor what only answers have.
fn as_json_schema(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::Object(properties)) = fields.get_mut("properties") {
                properties.retain(|_, property| property.get("readOnly") != Some(&json!(true)) || property.get("$ref").is_none());
                fields.entry("additionalProperties").or_insert(json!(false));
            }
            fields.values_mut().for_each(as_json_schema);
            if fields.remove("nullable") == Some(json!(true)) {
                let bare = std::mem::take(fields);
                fields.insert("anyOf".into(), json!([bare, {"type": "null"}]));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(as_json_schema),
        _ => {}
    }
}

#[tokio::test]
async fn klaviyos_document_describes_what_we_send_and_what_we_understand() {
    let Some(contract) = Contract::read("klaviyo.json") else { return };
    let server = Server::start(|_, seen| status(if seen.path == "/api/events" { 202 } else { 201 })).await;
    let mut events = lane("klaviyo", klaviyo::block(&server, "event"), true);
    let full = json!({"metric": "Refunded", "unique_id": "refund:9", "time": now(), "value": 3, "value_currency": "USD",
        "properties": {"lines": [{"sku": "SOUP", "qty": "1"}]},
        "profile": {"external_id": "g1", "email": "ada@example.com", "phone_number": "+15005550006", "first_name": "Ada", "last_name": null,
            "locale": "en-US", "location": {"city": "Chicago", "zip": "60601"}, "properties": {"tier": "gold"}}});
    let loaded = tillstream_connectors::sink::Item { mapped: item(3, &full).mapped, ..unmapped(3, "read") };
    deliver(&mut events, vec![item(1, &klaviyo::paid(1)), item(2, &full), loaded]).await.expect("answers");
    let mut profiles = lane("klaviyo", klaviyo::block(&server, "profile"), true);
    deliver(&mut profiles, vec![item(4, &full["profile"]), item(5, &json!({"id": "01G", "email": null}))]).await.expect("answers");
    let seen = server.seen();
    assert_eq!(seen.len(), 5);
    seen.iter().for_each(|seen| contract.assert_request(seen));

    // A validator that takes everything would take these, too.
    let wrong = |change: &dyn Fn(&mut Value)| {
        let mut body = seen[0].json();
        change(&mut body);
        contract.problems(&json!({"$ref": "#/components/schemas/EventCreateQueryV2"}), &body)
    };
    assert!(wrong(&|_| ()).is_empty());
    assert!(!wrong(&|body| body["data"]["attributes"]["uniqe_id"] = json!("x")).is_empty());
    assert!(!wrong(&|body| body["data"]["attributes"]["metric"] = json!("Paid")).is_empty());
    assert!(!wrong(&|body| drop(body["data"]["attributes"].as_object_mut().expect("an object").remove("profile"))).is_empty());

    let guest = json!({"data": {"type": "profile", "id": "01GDDKASAP8TKDDA2GRZDSVP4H", "attributes": {"external_id": "g1", "email": null},
        "links": {"self": "https://a.klaviyo.com/api/profiles/01GDDKASAP8TKDDA2GRZDSVP4H/"}}});
    for (path, code, body, expected) in [
        ("/api/events", 202, Value::Null, Some("delivered")),
        ("/api/events", 400, klaviyo::errors("invalid", "/data/attributes/profile"), Some("http.status_400")),
        ("/api/events", 409, klaviyo::errors("duplicate_event", "/data"), Some("absorbed")),
        ("/api/events", 401, klaviyo::errors("not_authenticated", "/data/"), None),
        ("/api/events", 403, klaviyo::errors("permission_denied", "/data/"), None),
        ("/api/events", 500, klaviyo::errors("error", "/data/"), Some("again")),
        ("/api/events", 503, klaviyo::errors("service_unavailable", "/data/"), None),
        ("/api/profile-import", 200, guest.clone(), Some("delivered")),
        ("/api/profile-import", 201, guest, Some("delivered")),
        ("/api/profile-import", 409, klaviyo::errors("duplicate_profile", "/data/attributes"), Some("http.status_409")),
    ] {
        contract.assert_answer(path, code, &body);
        let told = body.clone();
        let server = Server::start(move |_, _| if told.is_null() { status(code) } else { answer(code, told.clone()) }).await;
        let (resource, mapped) =
            if path == "/api/events" { ("event", klaviyo::paid(1)) } else { ("profile", json!({"external_id": "g1"})) };
        let outcomes = deliver(&mut lane("klaviyo", klaviyo::block(&server, resource), true), vec![item(1, &mapped)]).await;
        assert_eq!(outcomes.ok().as_deref().map(said), expected.map(|word| vec![word]), "{path} {code}");
    }
}

#[tokio::test]
async fn squares_document_describes_what_we_send_and_what_we_understand() {
    let Some(contract) = Contract::read("square-inventory.json") else { return };
    const PATH: &str = "/v2/inventory/changes/batch-create";
    let example = contract.document["components"]["schemas"]["BatchChangeInventoryResponse"]["example"].clone();
    let told = example.clone();
    let server = Server::start(move |_, _| answer(200, told.clone())).await;
    let mut lists = square::block(&server);
    lists["changes"] = json!(100);
    lists["i_accept_duplicates"] = json!(true);
    let changes = [
        square::sold("2.5"),
        json!({"type": "PHYSICAL_COUNT", "catalog_object_id": "BACON", "location_id": "NORTH", "quantity": 12, "team_member_id": "LRK57NSQ5X7PUD05"}),
        json!({"type": "TRANSFER", "catalog_object_id": "BACON", "from_location_id": "NORTH", "to_location_id": "SOUTH", "quantity": "0.00001",
            "occurred_at": now(), "reference_id": "move:7"}),
    ];
    let items = || changes.iter().enumerate().map(|(n, change)| item(u32::try_from(n).expect("few"), change)).collect::<Vec<_>>();
    let outcomes = deliver(&mut lane("square-inventory", square::block(&server), true), items()).await.expect("answers");
    assert_eq!(said(&outcomes), ["delivered"; 3], "the vendor's example of an answer");
    let outcomes = deliver(&mut lane("square-inventory", lists, true), items()).await.expect("answers");
    assert_eq!(said(&outcomes), ["delivered"; 3]);
    let seen = server.seen();
    assert_eq!(seen.len(), 4);
    seen.iter().for_each(|seen| contract.assert_request(seen));
    assert_eq!(
        seen[0].header("square-version"),
        contract.document["components"]["securitySchemes"]["oauth2"]["x-additional-headers"][0]["schema"]["default"]
    );
    let mut misspelt = seen[0].json();
    misspelt["changes"][0]["adjustment"]["quantty"] = json!("1");
    assert!(!contract.problems(&json!({"$ref": "#/components/schemas/BatchChangeInventoryRequest"}), &misspelt).is_empty());

    // Theirs are all the codes that we may meet.
    for (code, category, name, expected) in [
        (400, "INVALID_REQUEST_ERROR", "INVALID_VALUE", Some("http.status_400")),
        (400, "INVALID_REQUEST_ERROR", "IDEMPOTENCY_KEY_REUSED", Some("http.key_reused")),
        (404, "INVALID_REQUEST_ERROR", "NOT_FOUND", Some("http.status_404")),
        (409, "API_ERROR", "CONFLICT", Some("again")),
        (401, "AUTHENTICATION_ERROR", "ACCESS_TOKEN_REVOKED", None),
        (403, "AUTHENTICATION_ERROR", "INSUFFICIENT_SCOPES", None),
        (429, "RATE_LIMIT_ERROR", "RATE_LIMITED", None),
        (500, "API_ERROR", "INTERNAL_SERVER_ERROR", Some("again")),
        (503, "API_ERROR", "SERVICE_UNAVAILABLE", None),
        (504, "API_ERROR", "GATEWAY_TIMEOUT", None),
    ] {
        let body = square::error(category, name);
        contract.assert_answer(PATH, code, &body);
        let server = Server::start(move |_, _| answer(code, body.clone())).await;
        let outcomes = deliver(&mut lane("square-inventory", square::block(&server), true), vec![item(1, &square::sold("1"))]).await;
        assert_eq!(outcomes.ok().as_deref().map(said), expected.map(|word| vec![word]), "{code} {name}");
    }
}

#[tokio::test]
async fn cloud_events_fit_their_schema() {
    let Some(schema) = document("cloudevents.schema.json") else { return };
    let validator = jsonschema::options().should_validate_formats(true).build(&schema).expect("a schema");
    for (mode, op) in [("structured", "insert"), ("structured", "delete"), ("batch", "update")] {
        let server = Server::start(|_, _| status(204).into_response()).await;
        let block = json!({"url": server.url, "secrets": webhook::SECRET, "mode": mode, "source": "/pos/north", "columns": {"public.payment": ["id", "note"]}});
        let items = vec![unmapped(1, op), unmapped(2, op)];
        assert_eq!(said(&deliver(&mut lane("webhook", block, false), items).await.expect("answers")), ["delivered"; 2]);
        let bodies = server
            .seen()
            .iter()
            .flat_map(|seen| if mode == "batch" { seen.json().as_array().expect("a list").clone() } else { vec![seen.json()] })
            .collect::<Vec<_>>();
        assert_eq!(bodies.len(), 2);
        for body in bodies {
            let problems: Vec<_> = validator.iter_errors(&body).map(|error| error.to_string()).collect();
            assert!(problems.is_empty(), "{body}: {problems:?}");
            let mut untimely = body;
            untimely["time"] = json!("yesterday");
            assert!(!validator.is_valid(&untimely));
        }
    }
}
