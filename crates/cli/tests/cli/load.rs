//! `bench serve`: against a server whose delays and faults are known, and against `ferrum serve`.

use std::{
    collections::HashSet,
    fs,
    io::{BufRead, BufReader},
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    common::{command, error, fixture, json as run_json, repository, text, with},
    fake::{Asked, Fake, Reply, answer, max_tokens, only_answers},
};

/// The JSON report of a run against `url`.
fn bench(url: &str, flags: &[&str]) -> Value {
    run_json(&with(&["bench", "serve", url, "--json"], flags))
}

/// Answers every request as it asks, with these delays in milliseconds.
fn steady(first: u64, each: u64) -> Fake {
    Fake::start(move |asked| only_answers(asked, |asked| Reply::Stream(answer(first, each, max_tokens(&asked.body), prompt_len(asked)))))
}

fn prompt_len(asked: &Asked) -> Option<usize> {
    asked.body["prompt"].as_array().map(Vec::len)
}

/// Measured times can be late on a busy machine, and never early.
fn within(value: &Value, at_least: f64, at_most: f64) {
    let value = value.as_f64().unwrap();
    assert!((at_least..at_most).contains(&value), "{value} is not in {at_least}..{at_most}");
}

#[test]
fn known_delays_are_measured() {
    let server = steady(60, 20);
    let flags = ["--vocab", "100", "--input-len", "12", "--output-len", "6", "--concurrency", "1,4", "--num-prompts", "8"];
    let found = bench(&server.url, &with(&flags, &["--slo", "ttft=1000,e2e=10"]));
    assert_eq!((&found["model"], &found["route"], &found["token_ids"]), (&json!("fake"), &json!("/v1/completions"), &json!(true)));
    let points = found["points"].as_array().unwrap();
    assert_eq!((points.len(), &points[0]["concurrency"], &points[1]["concurrency"]), (2, &json!(1), &json!(4)));
    for point in points {
        assert_eq!((&point["completed"], &point["failed"], &point["errors"]), (&json!(8), &json!(0), &json!([])));
        assert_eq!(
            (&point["tokens"]["prompt"], &point["tokens"]["output"], &point["tokens"]["events"]),
            (&json!(96), &json!(48), &json!(48))
        );
        within(&point["ttft_ms"]["median"]["value"], 60.0, 200.0);
        within(&point["itl_ms"]["median"]["value"], 20.0, 60.0);
        within(&point["tpot_ms"]["median"]["value"], 20.0, 80.0);
        within(&point["e2e_ms"]["mean"]["value"], 160.0, 800.0);
        assert_eq!(point["itl_ms"]["count"], 40);
        let mean = &point["ttft_ms"]["mean"];
        assert!(mean["low"].as_f64() <= mean["value"].as_f64() && mean["value"].as_f64() <= mean["high"].as_f64(), "{mean}");
        let (span, rate) = (point["span_s"].as_f64().unwrap(), point["output_tok_s"]["value"].as_f64().unwrap());
        assert!((rate * span - 48.0).abs() < 1e-6, "{rate} {span}");
        // No request takes less than 160 ms.
        assert_eq!((&point["goodput"]["share"], &point["goodput"]["requests_s"]["value"]), (&json!(0.0), &json!(0.0)));
        assert_eq!(point["notes"], json!([]));
    }
    // Four at a time take about a fourth of the time.
    let speed_up = points[0]["span_s"].as_f64().unwrap() / points[1]["span_s"].as_f64().unwrap();
    assert!((1.8..4.5).contains(&speed_up), "{speed_up}");

    // One request to get acquainted, one of warm-up for each point, and eight.
    let bodies = server.bodies.lock().unwrap();
    assert_eq!(bodies.len(), 1 + 2 * 9);
    let mut prompts = HashSet::new();
    for body in &bodies[1..] {
        let ids: Vec<u64> = body["prompt"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
        assert!(ids.len() == 12 && ids.iter().all(|&id| id < 100), "{body}");
        assert!(prompts.insert(ids), "a prompt came twice");
        assert_eq!(
            (&body["max_tokens"], &body["ignore_eos"], &body["stream"], &body["temperature"]),
            (&json!(6), &json!(true), &json!(true), &json!(0.0))
        );
        assert_eq!(body["stream_options"], json!({"include_usage": true}));
    }
}

#[test]
fn the_same_seed_sends_the_same_prompts() {
    let prompts = |seed| {
        let server = steady(0, 0);
        bench(&server.url, &["--vocab", "1000", "--input-len", "9", "--range-ratio", "0.5", "--output-len", "2", "--seed", seed]);
        let bodies = server.bodies.lock().unwrap();
        bodies[1..].iter().map(|body| body["prompt"].to_string()).collect::<Vec<_>>()
    };
    let first = prompts("1");
    assert_eq!(first, prompts("1"));
    assert_ne!(first, prompts("2"));
    assert!(first.iter().map(String::len).collect::<HashSet<_>>().len() > 1, "the lengths do not vary");
}

#[test]
fn every_fault_is_counted_by_kind_with_an_example() {
    let server = Fake::start(|asked| {
        only_answers(asked, |asked| {
            let good = answer(1, 1, 4, Some(8));
            // The first two are the acquaintance and the warm-up.
            match asked.before.saturating_sub(2) % 8 {
                1 | 2 => Reply::Json(503, json!({"error": {"message": "the queue is full"}})),
                3 => Reply::Broken(good[..2].to_vec()),
                // No end, and nothing that says why
                4 => Reply::Stream(good[..2].to_vec()),
                5 => Reply::Stream(vec![good[0].clone(), (Duration::ZERO, json!({"error": {"message": "out of <memory>"}}).to_string())]),
                6 => Reply::Stream(vec![(Duration::ZERO, "{nonsense".into())]),
                7 => Reply::Nothing,
                _ => Reply::Stream(good),
            }
        })
    });
    let dir = tempfile::tempdir().unwrap();
    let html = dir.path().join("report.html");
    let flags = ["--vocab", "100", "--input-len", "8", "--output-len", "4", "--num-prompts", "16", "--html", html.to_str().unwrap()];
    let found = bench(&server.url, &flags);
    let point = &found["points"][0];
    assert_eq!((&point["completed"], &point["failed"]), (&json!(2), &json!(14)), "{point}");
    let errors: Vec<(&str, u64)> =
        point["errors"].as_array().unwrap().iter().map(|e| (e["kind"].as_str().unwrap(), e["count"].as_u64().unwrap())).collect();
    // A broken stream, one without an end, and no answer at all
    assert_eq!(errors[0], ("cut off", 6), "{point}");
    for expected in [("http 503", 4), ("in stream", 2), ("malformed", 2)] {
        assert!(errors.contains(&expected), "{expected:?} is not in {errors:?}");
    }
    let example = |kind: &str| point["errors"].as_array().unwrap().iter().find(|e| e["kind"] == kind).unwrap()["example"].clone();
    assert_eq!((example("http 503"), example("in stream")), (json!("the queue is full"), json!("out of <memory>")));
    // What failed is no part of the speed.
    assert_eq!(point["tokens"]["output"], 8);
    let html = fs::read_to_string(html).unwrap();
    assert!(html.contains("the queue is full") && html.contains("out of &lt;memory&gt;") && html.contains("<svg"), "{html}");
    assert!(!html.contains("<script") && !html.contains("http-equiv=\"refresh") && !html.contains("<memory>"));
}

#[test]
fn a_request_that_takes_too_long_has_failed() {
    let server =
        Fake::start(|asked| only_answers(asked, |asked| Reply::Stream(answer(if asked.before > 2 { 3000 } else { 0 }, 0, 2, None))));
    let flags = ["--vocab", "9", "--num-prompts", "2", "--output-len", "2", "--timeout", "0.3"];
    let point = bench(&server.url, &flags)["points"][0].clone();
    assert_eq!((&point["completed"], &point["errors"][0]["kind"]), (&json!(1), &json!("timeout")), "{point}");
}

#[test]
fn without_a_count_events_are_tokens() {
    let server = Fake::start(|asked| only_answers(asked, |asked| Reply::Stream(answer(1, 1, max_tokens(&asked.body) / 2, None))));
    let found = bench(&server.url, &["--vocab", "100", "--input-len", "8", "--output-len", "6", "--num-prompts", "4"]);
    assert!(found["notes"][0].as_str().unwrap().contains("counts no tokens"), "{found}");
    let point = &found["points"][0];
    assert_eq!((&point["tokens"]["prompt"], &point["tokens"]["output"]), (&json!(32), &json!(12)));
    assert!(point["notes"].to_string().contains("4 answers had 3.0 tokens on average where 6.0 were asked for"), "{point}");
}

/// No ids, no `ignore_eos`, no count unless asked nicely; a word is two tokens, and seven stand around a prompt.
#[test]
fn a_server_for_texts_gets_words_of_the_right_length() {
    let server = Fake::start(|asked| {
        only_answers(asked, |asked| {
            let Some(text) = asked.body["prompt"].as_str() else {
                return Reply::Json(422, json!({"detail": [{"loc": ["body", "prompt"], "msg": "must be a string"}]}));
            };
            if asked.body.get("ignore_eos").is_some() {
                return Reply::Json(400, json!({"error": {"message": "unknown field ignore_eos"}}));
            }
            Reply::Stream(answer(0, 0, max_tokens(&asked.body), Some(7 + 2 * text.split(' ').count())))
        })
    });
    let found = bench(&server.url, &["--vocab", "100", "--input-len", "207", "--output-len", "2", "--num-prompts", "5"]);
    assert_eq!((&found["token_ids"], &found["ignore_eos"]), (&json!(false), &json!(false)));
    let notes = found["notes"].to_string();
    assert!(notes.contains("no token ids") && notes.contains("no `ignore_eos`"), "{notes}");
    assert_eq!(found["points"][0]["tokens"]["prompt"], 5 * 207);
}

#[test]
fn a_server_that_only_chats_is_asked_in_messages() {
    let server = Fake::start(|asked| match asked.path {
        "/v1/chat/completions" => {
            assert_eq!(asked.authorization.as_deref(), Some("Bearer secret"));
            let words = asked.body["messages"][0]["content"].as_str().unwrap().split(' ').count();
            if asked.body.get("max_tokens").is_some() {
                return Reply::Json(400, json!({"error": {"message": "use max_completion_tokens instead of max_tokens"}}));
            }
            let tokens = asked.body["max_completion_tokens"].as_u64().unwrap();
            let delta = |delta: Value| json!({"choices": [{"index": 0, "delta": delta, "finish_reason": null}]}).to_string();
            let wait = Duration::from_millis;
            let mut events = vec![(wait(0), delta(json!({"role": "assistant", "content": ""})))];
            events.extend((0..tokens).map(|i| (wait(if i == 0 { 50 } else { 5 }), delta(json!({"content": "x"})))));
            events.push((wait(0), json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}).to_string()));
            events.push((wait(0), json!({"choices": [], "usage": {"prompt_tokens": 20 + words, "completion_tokens": tokens}}).to_string()));
            events.push((wait(0), "[DONE]".into()));
            Reply::Stream(events)
        }
        _ => Reply::Json(404, json!({"error": {"message": "not found"}})),
    });
    let flags = ["--api-key", "secret", "--input-len", "100", "--output-len", "5", "--num-prompts", "3"];
    let found = bench(&format!("{}/v1/", server.url), &flags);
    assert_eq!(found["route"], "/v1/chat/completions");
    let point = &found["points"][0];
    assert_eq!((&point["tokens"]["prompt"], &point["tokens"]["output"]), (&json!(300), &json!(15)));
    // The event that announces the role is no token.
    within(&point["ttft_ms"]["median"]["value"], 50.0, 200.0);
}

#[test]
fn requests_come_at_a_rate_whether_or_not_answers_do() {
    let server = steady(300, 0);
    let flags = ["--vocab", "100", "--input-len", "4", "--output-len", "2", "--rate", "40,inf", "--num-prompts", "24"];
    let found = bench(&server.url, &flags);
    let (poisson, all) = (&found["points"][0], &found["points"][1]);
    assert_eq!((&poisson["rate"], &all["rate"], &all["completed"]), (&json!(40.0), &json!("inf"), &json!(24)));
    // 23 gaps of 25 ms on average, and the last answer
    within(&poisson["span_s"], 0.5, 3.0);
    within(&all["span_s"], 0.3, 1.5);
    assert_eq!(server.most.load(std::sync::atomic::Ordering::SeqCst), 24);
    let timed = bench(&server.url, &["--vocab", "100", "--input-len", "4", "--output-len", "2", "--rate", "20", "--duration", "1"]);
    within(&timed["points"][0]["span_s"], 0.6, 3.0);
    within(&timed["points"][0]["completed"], 8.0, 36.0);
}

#[test]
fn files_give_prompts_and_lengths_of_answers() {
    let server = Fake::start(|asked| match asked.path {
        // A token is a letter.
        "/tokenize" => Reply::Json(200, json!({"tokens": vec![1; asked.body["prompt"].as_str().unwrap().len()]})),
        _ => only_answers(asked, |asked| Reply::Stream(answer(0, 0, max_tokens(&asked.body).min(50), Some(5)))),
    });
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sharegpt.json");
    let turns = |words: &str, reply: &str| json!({"conversations": [{"from": "human", "value": words}, {"from": "gpt", "value": reply}]});
    fs::write(&file, json!([turns("one", "123"), turns("two", "12345")]).to_string()).unwrap();
    let file = file.to_str().unwrap();
    let found = bench(&server.url, &["--dataset", file, "--num-prompts", "2", "--warmup", "0"]);
    assert_eq!(found["points"][0]["tokens"]["output"], 3 + 5);
    let sent: HashSet<String> = server.bodies.lock().unwrap()[1..].iter().map(|body| body["prompt"].to_string()).collect();
    assert_eq!(sent, HashSet::from(["\"one\"".to_owned(), "\"two\"".to_owned()]));

    let lines = dir.path().join("prompts.jsonl");
    fs::write(&lines, "{\"prompt\": \"p\", \"output_tokens\": 4}\n{\"prompt\": \"q\"}\n").unwrap();
    let found = bench(&server.url, &["--dataset", lines.to_str().unwrap(), "--num-prompts", "2", "--warmup", "0"]);
    assert!(found["notes"].to_string().contains("the model ends those answers"), "{found}");
    assert_eq!(found["points"][0]["tokens"]["output"], 4 + 50);
    let bodies = server.bodies.lock().unwrap();
    let of = |prompt: &str| bodies.iter().rfind(|body| body["prompt"] == prompt).unwrap();
    assert_eq!((of("p").get("ignore_eos"), of("q").get("ignore_eos")), (Some(&json!(true)), None));
}

#[test]
fn a_file_may_ask_for_any_length_of_an_answer() {
    let server = Fake::start(|asked| {
        let tokens = asked.body["max_tokens"].as_u64().unwrap_or(0).min(5) as usize;
        only_answers(asked, |_| Reply::Stream(answer(0, 0, tokens, Some(5))))
    });
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompts.jsonl");
    fs::write(&file, format!("{{\"prompt\": \"p\", \"output_tokens\": {}}}\n", u64::MAX).repeat(2)).unwrap();
    let found = bench(&server.url, &["--dataset", file.to_str().unwrap(), "--num-prompts", "2", "--warmup", "0"]);
    assert_eq!(found["points"][0]["tokens"]["output"], 10, "{found}");
}

#[test]
fn a_server_that_counts_no_answer_is_asked_once() {
    let asked_to_count = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&asked_to_count);
    let server = Fake::start(move |asked| {
        count.fetch_add(usize::from(asked.path == "/tokenize"), Ordering::SeqCst);
        only_answers(asked, |_| Reply::Stream(answer(0, 0, 3, Some(5))))
    });
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sharegpt.json");
    let item = json!({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]});
    fs::write(&file, json!([item, item, item]).to_string()).unwrap();
    let found = bench(&server.url, &["--dataset", file.to_str().unwrap(), "--num-prompts", "3", "--warmup", "0"]);
    assert!(found["notes"].to_string().contains("the model ends those answers"), "{found}");
    assert_eq!(asked_to_count.load(Ordering::SeqCst), 1);
}

/// The third request is read from a connection that was kept, and never answered.
#[test]
fn a_request_that_was_sent_is_not_sent_again() {
    let server = Fake::start(|asked| {
        only_answers(asked, |asked| if asked.before == 2 { Reply::Nothing } else { Reply::Stream(answer(0, 0, 2, Some(8))) })
    });
    let flags = ["--vocab", "9", "--input-len", "8", "--output-len", "2", "--num-prompts", "4", "--warmup", "0"];
    let point = bench(&server.url, &flags)["points"][0].clone();
    assert_eq!((&point["completed"], &point["errors"][0]["kind"]), (&json!(3), &json!("cut off")), "{point}");
    assert_eq!(server.bodies.lock().unwrap().len(), 1 + 4);
}

#[test]
fn https_is_spoken_to_those_who_are_trusted() {
    let server = Fake::start_tls(|asked| only_answers(asked, |asked| Reply::Stream(answer(1, 1, max_tokens(&asked.body), Some(8)))));
    let authority = repository().join("crates/cli/tests/cli/tls/ca.pem");
    let flags = ["--vocab", "9", "--input-len", "8", "--output-len", "3", "--num-prompts", "4", "--concurrency", "2"];
    let found = bench(&server.url, &with(&flags, &["--ca-file", authority.to_str().unwrap()]));
    assert_eq!((&found["points"][0]["completed"], &found["points"][0]["tokens"]["output"]), (&json!(4), &json!(12)));
    let refused = error(&["bench", "serve", &server.url]);
    assert!(refused.contains("--ca-file") && refused.contains("certificate"), "{refused}");
}

#[test]
fn mistakes_and_absent_servers_are_explained() {
    let nobody = "http://127.0.0.1:9";
    assert!(error(&["bench", "serve", nobody]).contains("is it running?"));
    assert!(error(&["bench", "serve", "127.0.0.1:9"]).contains("http://"));
    for (flags, part) in [
        (&["--range-ratio", "1"][..], "--range-ratio"),
        (&["--concurrency", "0"], "--concurrency"),
        (&["--rate", "-1"], "--rate"),
        (&["--rate", "inf", "--duration", "1"], "--num-prompts"),
        (&["--rate", "1", "--concurrency", "1"], "--rate"),
        (&["--slo", "itl=3"], "ttft, tpot, e2e"),
        (&["--extra-body", "3"], "--extra-body"),
    ] {
        let server = steady(0, 0);
        let text = error(&with(&["bench", "serve", &server.url, "--vocab", "9"], flags));
        assert!(text.contains(part), "{flags:?}: {text}");
    }
    let locked = Fake::start(|_| Reply::Json(401, json!({"error": {"message": "no key"}})));
    let text = error(&["bench", "serve", &locked.url]);
    assert!(text.contains("--api-key") && text.contains("no key"), "{text}");
    // It answers to get acquainted, and then no more.
    let broken = Fake::start(|asked| {
        only_answers(asked, |asked| {
            if asked.before == 0 { Reply::Stream(answer(0, 0, 2, None)) } else { Reply::Json(500, json!({"error": "sick"})) }
        })
    });
    let output = command(&["bench", "serve", &broken.url, "--vocab", "9"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(out.contains("failed: 16 × http 500: sick") && err.contains("no request succeeded"), "{out}{err}");
}

#[test]
fn a_server_that_starts_late_is_waited_for() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let model = fixture("llama3");
    let late = thread::spawn(move || {
        thread::sleep(Duration::from_millis(500));
        Served::start(&[&model, "--port", &port.to_string()])
    });
    let flags = ["--wait", "60", "--input-len", "16", "--output-len", "4", "--num-prompts", "2"];
    let found = bench(&format!("http://127.0.0.1:{port}"), &flags);
    assert_eq!(found["points"][0]["completed"], 2);
    drop(late.join().unwrap());
}

/// `ferrum serve`, until it is dropped.
struct Served {
    child: Child,
    url: String,
}

impl Served {
    fn start(args: &[&str]) -> Self {
        let args = with(&with(&["serve"], args), &["--log-format", "json", "--backend", "cpu", "--threads", "2"]);
        let mut child = command(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let found = log.lines().map_while(Result::ok).find_map(|line| {
            let address = line.split_once("listening on ")?.1;
            Some(address.split(['"', ' ', '\u{1b}']).next()?.to_owned())
        });
        Self { child, url: found.unwrap() }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn our_own_server_gives_what_is_asked_for() {
    let server = Served::start(&[&fixture("llama3"), "--port", "0", "--max-seqs", "4"]);
    let flags = ["--wait", "60", "--input-len", "64", "--output-len", "16", "--concurrency", "1,4", "--num-prompts", "12"];
    let found = bench(&server.url, &flags);
    assert_eq!((&found["token_ids"], &found["ignore_eos"], &found["notes"]), (&json!(true), &json!(true), &json!([])));
    for point in found["points"].as_array().unwrap() {
        assert_eq!((&point["completed"], &point["failed"]), (&json!(12), &json!(0)), "{point}");
        assert_eq!((&point["tokens"]["prompt"], &point["tokens"]["output"]), (&json!(12 * 64), &json!(12 * 16)));
        assert_eq!((&point["tokens"]["cached"], &point["notes"]), (&json!(0), &json!([])), "{point}");
    }
    // The same prompts again are found in the cache, block by block, and that is said.
    let flags = ["--seed", "9", "--input-len", "150", "--output-len", "4", "--num-prompts", "3"];
    assert_eq!(bench(&server.url, &flags)["points"][0]["notes"], json!([]));
    let again = bench(&server.url, &flags);
    assert!(again["points"][0]["notes"].to_string().contains("in its cache: use another --seed"), "{again}");
    // A shared beginning is meant to be.
    let flags = ["--seed", "5", "--input-len", "16", "--prefix-len", "128", "--prefixes", "2", "--output-len", "4", "--num-prompts", "8"];
    let shared = &bench(&server.url, &flags)["points"][0];
    assert!(shared["tokens"]["cached"].as_u64() >= Some(5 * 128) && shared["notes"] == json!([]), "{shared}");
    // Chat: the template's tokens belong to the prompt.
    let chat = bench(&server.url, &["--api", "chat", "--input-len", "100", "--output-len", "8", "--num-prompts", "6"]);
    assert_eq!((&chat["route"], &chat["points"][0]["tokens"]["output"]), (&json!("/v1/chat/completions"), &json!(6 * 8)));
    within(&chat["points"][0]["tokens"]["prompt"], 480.0, 720.0);
    let shown = text(&["bench", "serve", &server.url, "--input-len", "8", "--output-len", "4", "--slo", "ttft=60000"]);
    for part in ["random token ids of 8 tokens", "concurrency", "goodput req/s", "TTFT", "of processor time per token", "(100 %)"] {
        assert!(shown.contains(part), "{part} is missing from\n{shown}");
    }
}

/// A thousand streams at once, and what they take of this program.
#[test]
fn a_thousand_streams_are_read_at_once() {
    let server = steady(3000, 40);
    let flags =
        ["--vocab", "100", "--input-len", "8", "--output-len", "16", "--concurrency", "1000", "--num-prompts", "1000", "--warmup", "0"];
    let point = bench(&server.url, &flags)["points"][0].clone();
    assert_eq!((&point["completed"], &point["failed"], &point["errors"]), (&json!(1000), &json!(0), &json!([])));
    assert_eq!((&point["tokens"]["output"], &point["tokens"]["events"]), (&json!(16_000), &json!(16_000)));
    assert_eq!(server.most.load(std::sync::atomic::Ordering::SeqCst), 1000);
    if let Some(us) = point["client"]["cpu_us_per_token"].as_f64() {
        eprintln!("{us:.1} µs of processor time per token");
        // Some 14 µs, connections and prompts included.
        assert!(us < 300.0, "{us} µs per token");
    }
}
