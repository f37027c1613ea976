//! Sinks that speak to the sandbox.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};
use tillstream_connectors::conformance::{Fact, Fault, Keeps, NotApplicable, Note, REFUSED, Subject, Trouble};
use tillstream_connectors::registry::{Registry, Target};
use tillstream_connectors::sandbox::{Act, Faults, Sandbox, Settings, WEBHOOK_SECRET};
use tillstream_connectors::sink::Item;

/// One sink and its pretend target.
pub(super) struct OverHttp {
    pub(super) name: String,
    pub(super) sandbox: Sandbox,
    pub(super) target: Arc<dyn Target>,
    pub(super) form: &'static Form,
    /// Requests so far when it was last armed.
    pub(super) armed_at: u64,
}

/// In what form a sink speaks.
pub(super) struct Form {
    /// What a `map` makes of an item; `None` where there is no `map`.
    pub(super) map: fn(Fact, Note, &Item) -> Option<Value>,
    /// The change that an effect's body tells of.
    pub(super) fact: fn(&Value) -> Option<Fact>,
    /// Several items travel in one request.
    pub(super) list: bool,
    /// What cannot happen to it.
    pub(super) excused: &'static [(Fault, &'static str)],
}

#[async_trait]
impl Subject for OverHttp {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn target(&self) -> Arc<dyn Target> {
        self.target.clone()
    }

    fn keeps(&self) -> Keeps {
        Keeps::Facts
    }

    fn map(&self, fact: Fact, note: Note, item: &Item) -> Option<Value> {
        (self.form.map)(fact, note, item)
    }

    fn excused(&self, fault: Fault) -> Option<NotApplicable> {
        self.form.excused.iter().find(|(f, _)| *f == fault).map(|(_, why)| NotApplicable(why))
    }

    async fn arm(&mut self, trouble: Trouble) -> Result<(), NotApplicable> {
        let act = |text: &str| text.parse::<Act>().expect("an act");
        // Of items that travel one by one it is the second that meets the trouble.
        let first = if self.form.list { vec![] } else { vec![Act::Serve] };
        let next = match trouble {
            Trouble::None => vec![],
            Trouble::LostAnswer => [first, vec![Act::LostAnswer]].concat(),
            Trouble::PutOff => [first, vec![Act::Partial]].concat(),
            Trouble::PauseSeconds => [first, vec![act("status_429 1s")]].concat(),
            Trouble::PauseDate => [first, vec![act("status_429_date 1s")]].concat(),
            Trouble::Failure => [first, vec![Act::Status500]].concat(),
            Trouble::FailureApplied => [first, vec![Act::Status500Applied]].concat(),
            Trouble::Slow => [first, vec![act("slow 900ms")]].concat(),
            Trouble::HangBefore => vec![act("hang 300ms")],
            Trouble::HangAfter => vec![act("late 300ms")],
            Trouble::FalseSuccess => vec![Act::Error200],
        };
        self.sandbox.set_faults(Faults { next: next.into(), refuse: vec![REFUSED.into()], ..Faults::default() });
        self.armed_at = self.sandbox.counts().requests;
        Ok(())
    }

    async fn reached(&mut self) -> bool {
        self.sandbox.counts().requests > self.armed_at
    }

    async fn idle(&mut self) -> bool {
        self.sandbox.is_idle()
    }

    async fn effects(&mut self) -> Vec<Fact> {
        let fact = |effect: &Value| (self.form.fact)(effect).unwrap_or_else(|| panic!("an effect tells no fact: {effect}"));
        self.sandbox.effects().iter().map(|effect| fact(&effect.body)).collect()
    }
}

/// A fact in an object with `id` (or `row`) and `change`.
pub(super) fn fact(value: &Value) -> Option<Fact> {
    let number = |name: &str| u32::try_from(value.get(name)?.as_u64()?).ok();
    Some(Fact { row: number("row").or_else(|| number("id"))?, change: number("change")? })
}

/// A sandbox of its own, and the kind's target there.
pub(super) async fn subject(name: &str, kind: &str, block: impl Fn(&Sandbox) -> Value, form: &'static Form) -> Box<dyn Subject> {
    let sandbox = Sandbox::start(([127, 0, 0, 1], 0).into(), Settings::default()).await.expect("listens");
    let registry = Registry::built_in();
    let mapped = {
        let probe = tillstream_connectors::conformance::item(&Plain, Fact { row: 1, change: 1 }, Note::Plain);
        (form.map)(Fact { row: 1, change: 1 }, Note::Plain, &probe).is_some()
    };
    let mut block = block(&sandbox);
    block["timeout"] = "500ms".into();
    // The sandbox listens on loopback.
    block["allow_private"] = true.into();
    let target = registry.get(kind).expect("built in").validate(&block, mapped).unwrap_or_else(|e| panic!("{name}: {e:?}"));
    Box::new(OverHttp { name: name.into(), sandbox, target, form, armed_at: 0 })
}

/// Gives an item without a map.
struct Plain;

#[async_trait]
impl Subject for Plain {
    fn name(&self) -> String {
        String::new()
    }

    fn target(&self) -> Arc<dyn Target> {
        unreachable!("items are made without a target")
    }

    fn keeps(&self) -> Keeps {
        Keeps::Facts
    }

    async fn arm(&mut self, _trouble: Trouble) -> Result<(), NotApplicable> {
        Ok(())
    }

    async fn reached(&mut self) -> bool {
        false
    }

    async fn idle(&mut self) -> bool {
        true
    }

    async fn effects(&mut self) -> Vec<Fact> {
        Vec::new()
    }
}

/// The sink's own words: columns below `data`.
const EVENT: Form = Form { map: |_, _, _| None, fact: |body| fact(body.get("data")?), list: false, excused: &[] };
static SINGLE: Form = Form { excused: &[(Fault::FalseSuccess, "the status is the answer")], ..EVENT };
static LIST: Form = Form { list: true, ..EVENT };
static MAPPED: Form = Form {
    map: |fact, note, item| {
        Some(json!({"id": item.idempotency_key, "row": fact.row, "change": fact.change, "note": note.text(), "points": "1.50"}))
    },
    fact,
    ..LIST
};

static WEBHOOK: Form = Form { map: MAPPED.map, fact: |body| fact(body.get("data")?), ..SINGLE };
static CLOUDEVENTS: Form = Form {
    list: true,
    excused: &[
        (Fault::FalseSuccess, "the status is the answer"),
        (Fault::OtherBody, "a receiver takes the first of the events with one source and id"),
    ],
    ..WEBHOOK
};
static KLAVIYO: Form = Form {
    map: |fact, note, _| {
        let guest = json!({"external_id": format!("g{}", fact.row)});
        Some(json!({"metric": "Paid", "profile": guest, "properties": {"row": fact.row, "change": fact.change, "note": note.text()}}))
    },
    fact: |body| fact(body.get("properties")?),
    list: false,
    excused: &[
        (Fault::FalseSuccess, "202 says that an event was taken, and nothing else does"),
        (Fault::OtherBody, "Klaviyo keeps the first of the events with one unique_id, in silence"),
    ],
};
static PROFILES: Form = Form {
    map: |fact, note, _| {
        let properties = json!({"row": fact.row, "change": fact.change, "note": note.text()});
        Some(json!({"external_id": format!("g{}", fact.row), "properties": properties}))
    },
    excused: &[
        (Fault::FalseSuccess, "the status is the answer"),
        (Fault::OtherBody, "a profile has no keys: what comes last counts, and each lane sends a guest's changes in order"),
    ],
    ..KLAVIYO
};
static SEGMENT: Form = Form {
    map: |fact, note, _| {
        let properties = json!({"row": fact.row, "change": fact.change, "note": note.text()});
        Some(json!({"type": "track", "event": "Paid", "userId": format!("g{}", fact.row), "properties": properties}))
    },
    fact: |body| fact(body.get("properties")?),
    list: true,
    excused: &[
        (Fault::Partial, "an answer of 200 says nothing of single events: what could be refused is looked at before it is sent"),
        (Fault::FalseSuccess, "an answer of 200 says nothing of single events"),
        (Fault::OtherBody, "Segment keeps the first of the events with one messageId, in silence"),
    ],
};
static SQUARE: Form = Form {
    map: |fact, note, _| {
        // Square takes no change older than a day, and a repeat has to say the same.
        static NOW: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| jiff::Timestamp::now().to_string());
        let reference = format!("{} {} {}", fact.row, fact.change, note.text());
        Some(json!({"type": "ADJUSTMENT", "catalog_object_id": "i", "location_id": "l", "from_state": "IN_STOCK", "to_state": "SOLD",
            "quantity": "1.5", "occurred_at": *NOW, "reference_id": reference}))
    },
    fact: |body| {
        let mut words = body.pointer("/adjustment/reference_id")?.as_str()?.split(' ').map_while(|word| word.parse().ok());
        Some(Fact { row: words.next()?, change: words.next()? })
    },
    list: false,
    excused: &[],
};

/// Every built-in sink that speaks HTTP. A new one is a line here, and a form above where it has one of its own.
pub(super) async fn subjects() -> Vec<Box<dyn Subject>> {
    let http = |mode: &'static str| move |sandbox: &Sandbox| json!({"url": sandbox.url("/http/events"), "mode": mode, "columns": {"public.fact": ["id", "change", "note"]}});
    let mapped = |sandbox: &Sandbox| json!({"url": sandbox.url("/http/events"), "mode": "batch"});
    let webhook = |sandbox: &Sandbox| json!({"url": sandbox.url("/webhook"), "secrets": [WEBHOOK_SECRET]});
    let cloudevents = |mode: &'static str| move |sandbox: &Sandbox| json!({"url": sandbox.url("/webhook"), "secrets": [WEBHOOK_SECRET], "mode": mode, "source": "/pos/test"});
    let klaviyo =
        |resource: &'static str| move |sandbox: &Sandbox| json!({"url": sandbox.url("/klaviyo"), "api_key": "k", "resource": resource});
    let segment = |sandbox: &Sandbox| json!({"url": sandbox.url("/segment"), "write_key": "w"});
    let square = |sandbox: &Sandbox| json!({"url": sandbox.url("/square"), "access_token": "t"});
    vec![
        subject("http single", "http", http("single"), &SINGLE).await,
        subject("http batch", "http", http("batch"), &LIST).await,
        subject("http batch, map", "http", mapped, &MAPPED).await,
        subject("webhook", "webhook", webhook, &WEBHOOK).await,
        subject("webhook, structured", "webhook", cloudevents("structured"), &WEBHOOK).await,
        subject("webhook, batch", "webhook", cloudevents("batch"), &CLOUDEVENTS).await,
        subject("klaviyo events", "klaviyo", klaviyo("event"), &KLAVIYO).await,
        subject("klaviyo profiles", "klaviyo", klaviyo("profile"), &PROFILES).await,
        subject("segment", "segment", segment, &SEGMENT).await,
        subject("square-inventory", "square-inventory", square, &SQUARE).await,
    ]
}
