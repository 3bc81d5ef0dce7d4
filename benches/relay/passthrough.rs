//! Messages relayed per second, and CPU seconds per 1000, from smtp-source to smtp-sink.

use std::time::{Duration, Instant};

use crate::process::{Postfix, Spillway, free_port, sink, source};

/// What one run gave.
#[derive(Clone, Copy)]
struct Figure {
    rate: f64,
    cpu_per_1000: f64,
}

/// The contract, by sessions: cut-through at least so many times Postfix's rate, queue mode at least so many times.
const WANTED: [(usize, f64, Option<f64>); 3] =
    [(5, 2.0, None), (20, 4.0, Some(2.5)), (50, 4.0, Some(2.5))];

pub fn run() {
    println!(
        "pass-through: smtp-source -> relay -> smtp-sink, embedded engines on (relayed messages/s; CPU s per 1000 messages)"
    );
    println!(
        "{:>6} {:>8} | {:>14} | {:>9} | {:>14} {:>13} | {:>14} {:>11} | {:>8}",
        "octets",
        "sessions",
        "Postfix",
        "ceiling",
        "cut-through",
        "x Postfix",
        "queue mode",
        "x Postfix",
        "CPU ratio"
    );
    for octets in [4096, 65_536] {
        for (sessions, cut_wanted, queue_wanted) in WANTED {
            row(octets, sessions, cut_wanted, queue_wanted);
        }
    }
}

fn row(octets: usize, sessions: usize, cut_wanted: f64, queue_wanted: Option<f64>) {
    let postfix = through_postfix(sessions, 2000, octets);
    let bare = bare(sessions, 20_000, octets);
    let cut = through_spillway("cut-through", sessions, 10_000, octets);
    let queue = through_spillway("queue", sessions, 10_000, octets);
    let (cut_ratio, queue_ratio) = (cut.rate / postfix.rate, queue.rate / postfix.rate);
    let cpu_ratio = postfix.cpu_per_1000 / cut.cpu_per_1000;
    println!(
        "{octets:>6} {sessions:>8} | {:>7.0} {:>6.2} | {bare:>9.0} | {:>7.0} {:>6.3} {cut_ratio:>5.1} (>= {cut_wanted}) | {:>7.0} {:>6.3} {queue_ratio:>5.1} {} | 1/{cpu_ratio:.1} (<= 1/6), {:.0} % of the ceiling",
        postfix.rate,
        postfix.cpu_per_1000,
        cut.rate,
        cut.cpu_per_1000,
        queue.rate,
        queue.cpu_per_1000,
        queue_wanted.map_or(String::new(), |wanted| format!("(>= {wanted})")),
        100.0 * cut.rate / bare,
    );
}

/// Runs a load until the sink has every message, and returns messages per second.
fn timed(relay: u16, sink_port: u16, sessions: usize, messages: usize, octets: usize) -> f64 {
    let mut sink = sink(sink_port, messages);
    let began = Instant::now();
    // The sink goes when it has its last message, which a source that speaks to it directly takes for an error.
    let _source = source(relay, sessions, messages, octets);
    while sink.0.try_wait().expect("smtp-sink").is_none() {
        assert!(
            began.elapsed() < Duration::from_secs(120),
            "the sink never got every message"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    messages as f64 / began.elapsed().as_secs_f64()
}

fn bare(sessions: usize, messages: usize, octets: usize) -> f64 {
    let port = free_port();
    timed(port, port, sessions, messages, octets)
}

fn through_postfix(sessions: usize, messages: usize, octets: usize) -> Figure {
    let sink_port = free_port();
    let postfix = Postfix::start(sink_port);
    timed(postfix.port, sink_port, sessions, 100, octets);
    let before = postfix.cpu();
    let rate = timed(postfix.port, sink_port, sessions, messages, octets);
    Figure {
        rate,
        cpu_per_1000: (postfix.cpu() - before) * 1000.0 / messages as f64,
    }
}

fn through_spillway(mode: &str, sessions: usize, messages: usize, octets: usize) -> Figure {
    let sink_port = free_port();
    let spillway = Spillway::start(
        mode,
        &format!(
            "[coverage]\nav = 0\ncontent = 0\n[[next_hop]]\nname = \"sink\"\ndomains = [\"*\"]\nkind = \"smtp\"\n\
             address = [\"127.0.0.1:{sink_port}\"]\ntls = \"off\"\nconnections = 50\n"
        ),
    );
    timed(spillway.port, sink_port, sessions, 100, octets);
    let before = spillway.cpu();
    let rate = timed(spillway.port, sink_port, sessions, messages, octets);
    Figure {
        rate,
        cpu_per_1000: (spillway.cpu() - before) * 1000.0 / messages as f64,
    }
}
