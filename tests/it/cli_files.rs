//! Files as an integration engineer gets them wrong: each fault is told with code, place and remedy, and most misspelt names with the right one. Editors
//! are told the same by the JSON Schemas.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tillstream::config::schema::{self, File};
use tillstream::config::{self, Problem};
use tillstream_connectors::registry::Registry;

use crate::harness::{Database, Postgres, program, root, scratch};

fn fixtures() -> PathBuf {
    root().join("tests/it/fixtures")
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}

fn yaml_files(dir: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir).expect("there").flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "yaml")).collect();
    files.sort();
    files
}

#[test]
fn every_broken_connector_file_is_told_with_code_file_line_column_and_a_fix() {
    let dir = fixtures().join("connectors");
    let files = yaml_files(&dir);
    assert!(files.len() >= 40, "{} files", files.len());
    let mut lines = String::new();
    for file in &files {
        let name = file.file_name().and_then(|n| n.to_str()).expect("a name");
        let mut command = std::process::Command::new(program());
        command.args(["validate", "--offline", "--format", "json", name]).current_dir(&dir).env_remove("NO_SUCH_SECRET");
        let output = command.output().expect("the program starts");
        assert_eq!(output.status.code(), Some(78), "{name}");
        let error: Value = serde_json::from_slice(&output.stderr).expect("one JSON document");
        let problems = error["error"]["problems"].as_array().expect("problems");
        assert!(!problems.is_empty(), "{name}");
        for problem in problems {
            let told = |key: &str| problem[key].as_str().is_some_and(|text| !text.is_empty());
            assert!(told("code") && told("what") && told("fix") && problem["file"] == *name, "{problem}");
            assert!(problem["line"].as_u64() > Some(0) && problem["column"].as_u64() > Some(0), "{problem}");
            assert!(!problem.to_string().contains("hunter2"), "a password is shown: {problem}");
            // The words may change with the keys and filters there are; what is told where does not.
            lines.push_str(&format!("{} {name}:{}:{}\n", text(problem, "code"), problem["line"], problem["column"]));
        }
    }
    let expected = dir.join("expected.txt");
    if std::env::var_os("TILLSTREAM_UPDATE").is_some() {
        std::fs::write(&expected, &lines).expect("can be written");
    }
    let expected = std::fs::read_to_string(expected).unwrap_or_default();
    assert!(expected == lines, "TILLSTREAM_UPDATE=1 writes it anew.\n--- expected\n{expected}\n--- got\n{lines}");
    println!("{} broken connector files, {} faults, each with code, file, line, column and a fix", files.len(), lines.lines().count());
}

/// What fingers do to a word, at its beginning, in its middle and at its end: a letter dropped, doubled, swapped with the next, replaced.
fn typos(word: &str) -> Vec<String> {
    let letters: Vec<char> = word.chars().collect();
    let n = letters.len();
    let mut places = vec![0, n / 2, n - 1];
    places.dedup();
    let mut typos = Vec::new();
    for at in places {
        let mut changed = |change: &dyn Fn(&mut Vec<char>)| {
            let mut letters = letters.clone();
            change(&mut letters);
            typos.push(letters.into_iter().collect::<String>());
        };
        changed(&|l| {
            l.remove(at);
        });
        changed(&|l| l.insert(at, l[at]));
        changed(&|l| l.swap(at, (at + 1).min(n - 1)));
        // The key to its right.
        let row =
            ["qwertyuiopq", "asdfghjkla", "zxcvbnmz"].iter().find_map(|row| row.find(letters[at]).map(|i| row.as_bytes()[i + 1] as char));
        changed(&|l| l[at] = row.unwrap_or('x'));
    }
    typos.sort();
    typos.dedup();
    typos.retain(|typo| typo != word && !typo.is_empty());
    typos
}

/// How many misspelt names got the right suggestion, and which did not.
#[derive(Default)]
struct Tally {
    right: usize,
    wrong: Vec<String>,
}

impl Tally {
    fn note(&mut self, typo: &str, word: &str, help: Option<&str>) {
        match help {
            Some(help) if help == format!("did you mean `{word}`?") => self.right += 1,
            _ => self.wrong.push(format!("{typo} for {word}: {}", help.unwrap_or("nothing"))),
        }
    }

    /// Prints the rate, which has to be above four in five.
    fn close(self, of: &str) -> (usize, usize) {
        let all = self.right + self.wrong.len();
        println!(
            "{of:<22} {:>5} of {all:>5} misspelt names get the right suggestion ({:.1} %)",
            self.right,
            100.0 * self.right as f64 / all as f64
        );
        assert!(self.right * 5 > all * 4, "{of}: {:#?}", self.wrong);
        (self.right, all)
    }
}

/// Every property of a schema: the path of its block, and its name among its neighbours.
fn properties(schema: &Value, path: &[String], found: &mut Vec<(Vec<String>, Vec<String>)>) {
    let Some(known) = schema["properties"].as_object() else { return };
    found.push((path.to_vec(), known.keys().cloned().collect()));
    for (name, below) in known {
        properties(below, &[path, std::slice::from_ref(name)].concat(), found);
    }
}

fn problems(path: &Path, text: &Value, registry: &Registry) -> Vec<Problem> {
    std::fs::write(path, text.to_string()).expect("can be written");
    match config::check_files(&[path.to_owned()], registry) {
        Ok(_) => Vec::new(),
        Err(report) => report.problems().to_vec(),
    }
}

#[test]
fn misspelt_keys_and_kinds_get_the_right_suggestion() {
    let registry = Registry::built_in();
    let file = scratch("typos").join("file.yaml");
    let mut sum = (0, 0);
    for (what, kind, first) in [("keys, pipeline", File::Pipeline, "source"), ("keys, connector", File::Connector, "connector")] {
        let mut blocks = Vec::new();
        properties(&schema::of(kind, &registry), &[], &mut blocks);
        let mut tally = Tally::default();
        for (path, names) in &blocks {
            let typos = names.iter().flat_map(|name| typos(name).into_iter().map(move |typo| (typo, name)));
            for (typo, name) in typos.filter(|(typo, _)| !names.contains(typo)) {
                let inner: Value = Map::from_iter([(typo.clone(), json!(1))]).into();
                let mut document = path.iter().rev().fold(inner, |inner, key| Map::from_iter([(key.clone(), inner)]).into());
                // What makes it a file of this kind.
                if document.get(first).is_none() {
                    document[first] = json!("x");
                }
                let said = problems(&file, &document, &registry);
                let meant = said.iter().find(|p| p.message.contains(&format!("`{typo}`")) || p.message.contains(&format!(".{typo}`")));
                tally.note(&typo, name, meant.and_then(|p| p.help.as_deref()));
            }
        }
        let (right, all) = tally.close(what);
        sum = (sum.0 + right, sum.1 + all);
    }
    println!("all keys: {} of {} ({:.1} %)", sum.0, sum.1, 100.0 * sum.0 as f64 / sum.1 as f64);
}

#[test]
fn misspelt_words_in_expressions_and_values_get_the_right_suggestion() {
    let registry = Registry::built_in();
    let file = scratch("typos").join("connector.yaml");
    let filters = [
        "decimal",
        "minor",
        "plus",
        "minus",
        "times",
        "date_in",
        "time_in",
        "business_date",
        "sha256",
        "email",
        "default",
        "lower",
        "upper",
        "replace",
        "length",
    ];
    let variables =
        ["after", "before", "row", "key", "table", "unchanged", "idempotency_key", "version", "committed_at", "commit_lsn", "ordinal"];
    let functions = ["changed", "range"];
    let choices = ["tombstone", "delete", "ignore"];
    let mut tally = Tally::default();
    let mut one = |words: &[&str], document: &dyn Fn(&str) -> Value| {
        for word in words {
            for typo in typos(word).into_iter().filter(|typo| !words.contains(&typo.as_str())) {
                let mut full = json!({"version": 1, "connector": "x", "from": {"tables": ["public.a"]}, "on_delete": "ignore", "to": {"http": {"url": "https://x.example"}}});
                for (key, value) in document(&typo).as_object().expect("a block") {
                    full[key] = value.clone();
                }
                let said = problems(&file, &full, &registry);
                let meant = said.iter().find(|p| p.message.contains(&format!("`{typo}`")) || p.message.contains(&format!(".{typo}`")));
                tally.note(&typo, word, meant.and_then(|p| p.help.as_deref()));
            }
        }
    };
    one(&filters, &|typo| json!({"map": {"x": format!("{{{{ after.x | {typo} }}}}")}}));
    one(&variables, &|typo| json!({"map": {"x": format!("{{{{ {typo} }}}}")}}));
    one(&functions, &|typo| json!({"map": {"x": format!("{{{{ {typo}('x') }}}}")}}));
    one(&choices, &|typo| json!({"on_delete": typo}));
    let attributes = [
        "external_id",
        "phone_number",
        "anonymous_id",
        "first_name",
        "last_name",
        "organization",
        "locale",
        "title",
        "location",
        "properties",
    ];
    let guests = json!({"klaviyo": {"resource": "profile", "api_key": "k"}});
    one(&attributes, &|typo| json!({"to": guests, "map": {"email": "ann@example.com", typo: "x"}}));
    let calls = ["messageId", "timestamp", "event", "properties", "traits", "context", "integrations", "groupId", "previousId"];
    one(&calls, &|typo| json!({"to": {"segment": {"write_key": "k"}}, "map": {"type": "identify", "userId": "7", typo: "x"}}));
    tally.close("expressions and values");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn misspelt_columns_and_tables_get_the_right_suggestion() {
    let server = Postgres::shared().await;
    let pos = Database::pos(server, "typos").await;
    let dir = scratch("typos");
    let client = pos.connect().await;
    client
        .batch_execute("CREATE PUBLICATION typos FOR TABLE public.customer, public.payment, public.order_item, public.menu_item")
        .await
        .expect("creates");
    let mut tally = Tally::default();
    for table in ["public.customer", "public.payment", "public.order_item"] {
        let rows = client
            .query(
                "SELECT attname::text FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped",
                &[&table],
            )
            .await
            .expect("the catalogue");
        let columns: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        let typos: Vec<(String, &String)> =
            columns.iter().flat_map(|c| typos(c).into_iter().map(move |t| (t, c))).filter(|(t, _)| !columns.contains(t)).collect();
        let map: Map<String, Value> =
            typos.iter().enumerate().map(|(n, (typo, _))| (format!("leaf{n}"), json!(format!("{{{{ after.{typo} }}}}")))).collect();
        let connector = json!({"version": 1, "connector": "x", "from": {"tables": [table]}, "on_delete": "ignore", "map": map, "to": {"http": {"url": "https://x.example"}}});
        std::fs::write(dir.join("x.yaml"), connector.to_string()).expect("written");
        let pipeline = json!({
            "version": 1, "pipeline": "typos", "journal": {"local": {"dir": "j"}}, "connectors": ["x.yaml"],
            "source": {"name": "pos", "url": pos.url, "slot": "typos", "publication": "typos", "tables": ["public.customer", "public.payment", "public.order_item", "public.menu_item"]},
        });
        std::fs::write(dir.join("tillstream.yaml"), pipeline.to_string()).expect("written");
        let output = tokio::process::Command::new(program())
            .args(["validate", "--format", "json"])
            .current_dir(&dir)
            .output()
            .await
            .expect("starts");
        let error: Value =
            serde_json::from_slice(&output.stderr).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
        let said = error["error"]["problems"].as_array().cloned().unwrap_or_default();
        for (typo, column) in &typos {
            let meant = said.iter().find(|p| p["what"].as_str().is_some_and(|what| what.contains(&format!("`{typo}`"))));
            tally.note(typo, column, meant.and_then(|p| p["fix"].as_str()));
        }
    }
    tally.close("columns");
}

/// A file as JSON; `None` where it is no YAML without anchors.
fn document(path: &Path) -> Option<Value> {
    serde_saphyr::from_str(&std::fs::read_to_string(path).ok()?).ok()
}

#[test]
fn the_schemas_for_editors_say_what_the_checker_says() {
    let registry = Registry::built_in();
    let schemas = [File::Pipeline, File::Connector].map(|file| schema::of(file, &registry));
    let validators = schemas.each_ref().map(|schema| jsonschema::validator_for(schema).expect("a schema"));
    for (n, name) in ["pipeline", "connector"].iter().enumerate() {
        let output = std::process::Command::new(program()).args(["schema", name]).output().expect("starts");
        let printed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(printed, schemas[n], "{name}");
    }
    let of = |document: &Value| usize::from(document.get("connector").is_some());
    // What the demo uses is right for both.
    for path in yaml_files(&root().join("docker/demo")) {
        let document = document(&path).expect("YAML");
        let errors: Vec<String> =
            validators[of(&document)].iter_errors(&document).map(|e| format!("{e} at {}", e.instance_path())).collect();
        assert!(errors.is_empty(), "{}: {errors:?}", path.display());
    }
    // What the checker refuses for keys and forms, the schema refuses too; what it only refuses for its meaning, the schema lets pass.
    let form = [
        "config.unknown_key",
        "config.missing_key",
        "config.bad_choice",
        "config.bad_name",
        "config.bad_table",
        "config.bad_number",
        "config.bad_duration",
        "config.bad_size",
        "config.unknown_kind",
        "config.bad_version",
        "config.wrong_type",
    ];
    let mut refused = 0;
    for path in [yaml_files(&fixtures().join("connectors")), yaml_files(&fixtures().join("config"))].concat() {
        let Err(report) = config::check_files(std::slice::from_ref(&path), &registry) else { panic!("{} is broken", path.display()) };
        // Of what a connector file beside it has, its own schema would tell.
        let own = |p: &&Problem| p.file == path.display().to_string();
        let formal = report.problems().iter().filter(own).any(|p| {
            form.contains(&p.code.as_str())
                && !(p.code.as_str() == "config.bad_duration" && p.message.ends_with("out of bounds"))
                && !(p.code.as_str() == "config.bad_size" && p.message.ends_with("out of bounds"))
        });
        let Some(document) = document(&path) else { continue };
        let valid = validators[of(&document)].is_valid(&document);
        assert!(!(formal && valid), "{}: the checker refuses it, the schema does not", path.display());
        refused += usize::from(!valid);
    }
    println!("{refused} broken files are refused by the schemas too");
    assert!(refused >= 25);
}

const PIPELINE: &str = "version: 1\npipeline: shop\nsource: {name: pos, url: \"postgres://nobody@127.0.0.1:9/pos\", slot: s, publication: p, tables: [public.orders]}\njournal: {local: {dir: ./journal}}\nconnectors: [crm.yaml]\n";
const CRM: &str = "version: 1\nconnector: crm\nfrom: {tables: [public.orders]}\nwhen: \"{{ after.paid }}\"\nmap:\n  id: \"{{ after.id }}\"\ntests:\n  - {name: a paid order, given: {after: {id: 1, paid: true}}, expect: {id: 1}}\n  - {name: a draft, given: {after: {id: 1, paid: false}}, filtered: true}\non_delete: ignore\nto:\n  http: {url: \"${env:CRM_URL}\", auth: {bearer: \"${env:CRM_TOKEN}\"}}\n";

/// Runs the program with these variables set, and no other that the files ask for.
fn run(dir: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let mut command = std::process::Command::new(program());
    command
        .args(arguments)
        .current_dir(dir)
        .env("NO_COLOR", "1")
        .env_remove("CRM_URL")
        .env_remove("CRM_TOKEN")
        .envs(environment.iter().copied());
    let output = command.output().expect("the program starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

const SET: [(&str, &str); 2] = [("CRM_URL", "https://crm.example/v1"), ("CRM_TOKEN", "t0ken")];

#[test]
fn an_overlay_changes_what_it_names_and_is_told_its_own_faults_at_its_own_place() {
    let dir = scratch("overlay");
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).expect("written");
    write("tillstream.yaml", PIPELINE);
    write("crm.yaml", CRM);
    write("crm.prod.yaml", "delivery: {lanes: 16}\nto:\n  http: {timeout: 3s}\n");
    let (code, out, err) = run(&dir, &["--environment", "prod", "validate", "--offline"], &SET);
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert!(out.contains("overlay        crm.prod.yaml\n"), "{out}");
    // Without the environment it is not looked at, however broken it is.
    write(
        "crm.prod.yaml",
        "\nconnector: other\ndelivery:\n  lanse: 16\nto:\n  http: {tiemout: 3s, url: \"https://me:hunter2@x.example\"}\nmap:\n  id: \"{{ afer.id }}\"\n",
    );
    assert_eq!(run(&dir, &["validate", "--offline"], &SET).0, Some(0));
    let (code, out, err) = run(&dir, &["validate", "--offline", "--format", "json"], &[SET[0], SET[1], ("TILLSTREAM_ENVIRONMENT", "prod")]);
    assert_eq!((code, out.as_str()), (Some(78), ""), "{err}");
    let told: Value = serde_json::from_str(&err).expect("JSON");
    let places: Vec<String> = told["error"]["problems"]
        .as_array()
        .expect("problems")
        .iter()
        .map(|p| format!("{} {}:{}:{}", text(p, "code"), text(p, "file"), p["line"], p["column"]))
        .collect();
    assert_eq!(
        places,
        [
            "config.conflict crm.prod.yaml:2:1",
            "config.unknown_key crm.prod.yaml:4:3",
            "config.bad_sink crm.prod.yaml:6:19",
            "config.bad_sink crm.prod.yaml:6:28",
            "config.bad_mapping crm.prod.yaml:8:7"
        ],
    );
    let (_, _, screen) = run(&dir, &["--environment", "prod", "validate", "--offline"], &SET);
    assert!(screen.contains(" 4 │   lanse: 16") && !screen.contains("hunter2"), "{screen}");
    assert_eq!(run(&dir, &["--environment", "Prod!", "validate", "--offline"], &SET).0, Some(78));
}

#[test]
fn validate_names_its_layers_and_speaks_to_people_machines_and_pull_requests() {
    let dir = scratch("layers");
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).expect("written");
    write("tillstream.yaml", PIPELINE);
    write("crm.yaml", CRM);
    let layers = |out: &str| -> Vec<String> {
        out.lines().filter(|l| l.starts_with("  ")).map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    };
    let (code, out, _) = run(&dir, &["validate", "--offline", "--deny-warnings"], &SET);
    assert_eq!(code, Some(0), "{out}");
    assert_eq!(
        layers(&out),
        [
            "syntax ok",
            "schema ok",
            "references ok among the files; live catalogue skipped (--offline)",
            "semantics ok",
            "tests ok (2/2)",
            "secrets ok",
            "connectivity skipped (--offline)",
            "security ok"
        ]
    );
    // A source that is away: the files are sound, and nobody says that all was looked at.
    let (code, out, err) = run(&dir, &["validate"], &SET);
    assert!(
        code == Some(69)
            && err.contains("capture.source_unavailable")
            && out.contains("connectivity   failed (capture.source_unavailable)"),
        "{code:?} {out} {err}"
    );
    // Warnings: sound, unless they are denied.
    let untested = CRM.replace("tests:", "retry: {}\nignored:").split("ignored:").next().expect("the beginning").to_owned()
        + "on_delete: ignore\nto:\n  http: {url: https://crm.example/v1, idempotency_header: none, i_accept_duplicates: true, auth: {bearer: hunter2-hunter2}}\n";
    write("crm.yaml", &untested);
    let (code, _, err) = run(&dir, &["validate", "--offline"], &[]);
    assert_eq!(code, Some(0), "{err}");
    assert!(!err.contains("hunter2"), "{err}");
    let codes: Vec<&str> = err.lines().filter_map(|l| l.strip_prefix("warning[")?.split(']').next()).collect();
    assert_eq!(codes, ["config.literal_secret", "config.untested", "config.no_idempotency"], "{err}");
    assert_eq!(run(&dir, &["validate", "--offline", "--deny-warnings"], &[]).0, Some(1));
    // An admin endpoint that anybody reaches is no matter of warnings.
    write("tillstream.yaml", &format!("{PIPELINE}admin: {{listen: \"0.0.0.0:7410\"}}\n"));
    let (code, _, err) = run(&dir, &["validate", "--offline"], &[]);
    assert!(code == Some(78) && err.contains("config.exposed_admin"), "{code:?} {err}");
    write("tillstream.yaml", PIPELINE);
    // A test that fails, as code scanning and a pull request see it.
    write("crm.yaml", &CRM.replace("expect: {id: 1}", "expect: {id: 2}").replace("a paid order", "\"a: paid, 100% order\""));
    let (code, out, _) = run(&dir, &["validate", "--offline", "--format", "github"], &SET);
    assert_eq!(code, Some(78));
    assert!(
        out.starts_with(
            "::error file=crm.yaml,line=8,col=12,title=config.test_failed::the test `a: paid, 100%25 order` of connector crm fails"
        ),
        "{out}"
    );
    let (code, out, _) = run(&dir, &["validate", "--offline", "--format", "sarif"], &SET);
    let sarif: Value = serde_json::from_str(&out).expect("JSON");
    let result = &sarif["runs"][0]["results"][0];
    assert_eq!(
        (code, result["ruleId"].as_str(), sarif["version"].as_str()),
        (Some(78), Some("config.test_failed"), Some("2.1.0")),
        "{out}"
    );
    assert_eq!(result["locations"][0]["physicalLocation"]["region"], json!({"startLine": 8, "startColumn": 12}));
}

#[tokio::test]
async fn tests_need_no_secrets_can_be_chosen_and_run_again_when_a_file_is_saved() {
    let dir = scratch("tests");
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).expect("written");
    write("tillstream.yaml", PIPELINE);
    write("crm.yaml", CRM);
    for arguments in [&["test"][..], &["test", "crm.yaml"]] {
        let (code, out, err) = run(&dir, arguments, &[]);
        assert_eq!((code, out.as_str()), (Some(0), "2 passed, 0 failed (2 crm)\n"), "{err}");
    }
    assert_eq!(run(&dir, &["test", "--filter", "draft"], &[]).1, "1 passed, 0 failed (2 crm)\n");
    // What else is wrong is told all the same.
    write("crm.yaml", &CRM.replace("auth:", "atuh:"));
    assert_eq!(run(&dir, &["test"], &SET).0, Some(78));
    write("crm.yaml", CRM);
    let watching = crate::harness::Process::start(&dir, "watch", &["test", "--watch"], &[]);
    let patience = std::time::Duration::from_secs(20);
    let watching = &watching;
    let saw = async |lines: &str| {
        crate::harness::wait_for(lines, patience, || async { watching.stdout().contains(lines).then_some(()) }).await;
    };
    saw("2 passed, 0 failed").await;
    write("crm.yaml", &CRM.replace("expect: {id: 1}", "expect: {id: 7}"));
    saw("  - id: 7\n  + id: 1\n1 passed, 1 failed").await;
}

const GOLDEN: &str = r#"# Guests, as the CRM knows them.
version: 1
connector: crm
from: {tables: [public.orders]}
when: "{{ after.paid }}"
map:
  id: "{{ after.id }}"      # theirs is ours
  total: "{{ after.total | minor }}"
tests:
  - name: a paid order     # the usual one
    given: {after: {id: 1, paid: true, total: "12.50"}}
    expect: {id: 1, total: 1200}   # in cents
  - {name: a draft, given: {after: {id: 1, paid: false}}, filtered: true}
  - name: no money
    expect:
      # What is missing is said.
      id: 2
      sum: 5
    given: {after: {id: 2, paid: true, total: "0.05"}}
  - {name: a broken one, given: {after: {id: 3, paid: true, total: x}}, expect: {id: 3}}
on_delete: ignore
to:
  http: {url: "${env:CRM_URL}"}
"#;

#[test]
fn what_a_vendor_does_not_take_is_refused_wherever_files_are_loaded() {
    let path = fixtures().join("connectors/57-consent-of-a-guest.yaml");
    let loaded = config::load_connectors(std::slice::from_ref(&path), &Registry::built_in());
    let tested = config::load_tests(&[path], &Registry::built_in());
    for report in [loaded.err(), tested.err()] {
        let report = report.expect("refused");
        let [problem] = report.problems() else { panic!("{report}") };
        assert_eq!((problem.code.as_str(), problem.line), ("config.bad_mapping", 7));
        assert!(problem.message.contains("`map.subscriptions` says something of consent"), "{}", problem.message);
    }
}

#[test]
fn golden_updates_touch_what_differs_and_nothing_else() {
    let dir = scratch("golden");
    let file = dir.join("crm.yaml");
    std::fs::write(&file, GOLDEN).expect("written");
    let (code, said, _) = run(&dir, &["test", "crm.yaml", "--update-golden"], &[]);
    let now = std::fs::read_to_string(&file).expect("there");
    let expected = GOLDEN
        .replace("{id: 1, total: 1200}   # in cents", "{id: 1, total: 1250}   # in cents")
        .replace("      id: 2\n      sum: 5\n", "      id: 2\n      total: 5\n");
    assert_eq!(now, expected, "{said}");
    // A test whose mapping fails is left, and named.
    assert_eq!(code, Some(1), "{said}");
    for line in [
        "UPDATED crm: a paid order",
        "  - total: 1200",
        "  + total: 1250",
        "UPDATED crm: no money",
        "FAILED crm: a broken one",
        "1 passed, 1 failed, 2 updated (4 crm)",
    ] {
        assert!(said.lines().any(|l| l == line), "{line}\nis not among\n{said}");
    }
    assert!(said.contains("not rewritten: it fails: `map.total`"), "{said}");
    // What was written passes, and is not written again.
    let (code, said, _) = run(&dir, &["test", "crm.yaml", "--update-golden", "--filter", "order", "--format", "json"], &[]);
    let document: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!((code, document), (Some(0), json!({"passed": 1, "failed": [], "updated": []})));
    assert_eq!(std::fs::read_to_string(&file).expect("there"), expected);
    assert_eq!(std::fs::read_dir(&dir).expect("there").count(), 1, "no other file is left behind");
}

#[test]
fn a_vendors_documented_budget_is_the_default_and_is_told() {
    let dir = scratch("budgets");
    let file = |more: &str| {
        let target = format!("to: {{klaviyo: {{resource: profile, api_key: k{more}}}}}");
        format!(
            "version: 1\nconnector: guests\nfrom: {{tables: [public.orders]}}\non_delete: ignore\nmap: {{external_id: \"{{{{ after.id }}}}\"}}\n{target}\n"
        )
    };
    let rate = |text: &str| {
        std::fs::write(dir.join("guests.yaml"), text).expect("written");
        let loaded = config::load_connectors(&[dir.join("guests.yaml")], &Registry::built_in()).unwrap_or_else(|report| panic!("{report}"));
        loaded[0].delivery.rate.map(|rate| rate.to_string())
    };
    assert_eq!(rate(&file("")).as_deref(), Some("750/m"));
    assert_eq!(
        rate(
            &file("")
                .replace("resource: profile", "resource: event")
                .replace("{external_id", "{metric: Paid, profile: {external_id")
                .replace("}}\"}", "}}\"}}")
        )
        .as_deref(),
        Some("3500/m")
    );
    // Who stands elsewhere has limits of its own, and whoever runs it knows best.
    assert_eq!(rate(&file(", url: \"http://127.0.0.1:1/klaviyo\", allow_private: true")), None);
    assert_eq!(rate(&format!("{}delivery: {{rate: 20/s}}\n", file(""))).as_deref(), Some("20/s"));

    std::fs::write(dir.join("guests.yaml"), file("")).expect("written");
    std::fs::write(dir.join("tillstream.yaml"), PIPELINE.replace("crm.yaml", "guests.yaml")).expect("written");
    let (code, said, why) = run(&dir, &["validate", "--offline"], &[]);
    assert_eq!(code, Some(0), "{why}");
    assert!(said.contains("guests: at most 750/m, as the vendor documents it"), "{said}");
    let (_, said, _) = run(&dir, &["schema", "connector"], &[]);
    assert!(said.contains("klaviyo: 3500/m, of profiles 750/m"), "the reference says what the sink does");
}
