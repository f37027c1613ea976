//! What a process holds that has many connectors and nothing to do.

use std::time::Duration;

use tillstream_connectors::sandbox::{Sandbox, Settings};

use super::figures::{Asked, Figures};
use super::process::usage;
use super::shop::{Shop, write};
use crate::harness::{Level, PATIENCE, Process, RabbitMq, free_port, judge_log, wait_for};

const CONNECTORS: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_connectors_that_rest_take_little_memory() {
    let shop = Shop::new("memory").await;
    let broker = RabbitMq::shared().await;
    let api = Sandbox::start(([127, 0, 0, 1], 0).into(), Settings::default()).await.expect("listens");
    let mut figures = Figures::new(
        "memory",
        "Capture and twenty connectors in one process, after a few sales were delivered by each of them; then nothing happens.",
    );
    for round in 0..Level::pick(1, 1, 5) {
        let name = format!("rest{round}");
        shop.slot(&name).await;
        let mut list = Vec::new();
        for n in 0..CONNECTORS {
            list.push(format!("{name}-{n}.yaml"));
            write(
                &shop.dir.join(&list[n]),
                &format!(
                    "version: 1\nconnector: guests{n}\nfrom: {{tables: [public.sale, public.payment]}}\non_delete: tombstone\nto:\n  http: {{url: \"{}\", allow_private: true, mode: batch, \
                     columns: {{public.sale: [status], public.payment: [amount]}}}}\n",
                    api.url("/http/events")
                ),
            );
        }
        let port = free_port();
        let file = shop.file(&name, broker, "", &format!("admin: {{listen: \"127.0.0.1:{port}\"}}\nconnectors: [{}]\n", list.join(", ")));
        let before = api.counts().applied;
        let process = Process::start(&shop.dir, &name, &["run", "--config", file.to_str().expect("UTF-8")], &[]);
        wait_for("the pipeline to be ready", PATIENCE, async || {
            reqwest::get(format!("http://127.0.0.1:{port}/readyz")).await.ok().filter(|answer| answer.status().is_success())
        })
        .await;
        for n in 1..=3_i64 {
            let sale = i64::from(round) * 10 + n;
            shop.pos.execute("CALL sell($1)", &[&sale]).await.expect("sells");
        }
        // Two changes of the order and one payment a sale.
        let wanted = before + 3 * 3 * CONNECTORS as u64;
        wait_for("every connector to deliver", PATIENCE, async || (api.counts().applied >= wanted).then_some(())).await;
        // What rests is looked at for a while: sessions, checkpoints and statistics go on meanwhile.
        tokio::time::sleep(Duration::from_secs(Level::pick(0, 1, 15))).await;
        let (_, kib) = usage(process.pid()).expect("it runs");
        figures.add("rest", "twenty connectors at rest: peak memory", "MiB", kib as f64 / 1024.0);
        process.terminate(PATIENCE).await;
        judge_log(&shop.dir.join(format!("{name}.err")), &[]);
        shop.drop_slot(&name).await;
    }
    figures.ask("rest", "twenty connectors at rest: peak memory", Asked::AtMost(96.0));
    figures.done();
}
