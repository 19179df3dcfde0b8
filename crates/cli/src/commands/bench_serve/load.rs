//! Sending requests: so many at a time, or at random times.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde::{Serialize, Serializer};
use tokio::{
    task::JoinSet,
    time::{self, sleep_until},
};

use super::{client::Client, record::Record, workload::Workload};
use crate::random::Random;

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// Closed loop: so many run at any time
    Concurrency(usize),
    /// Open loop: so many come a second, as a Poisson process; infinitely many: all at once
    #[serde(serialize_with = "rate_json")]
    Rate(f64),
}

/// JSON has no infinite numbers.
fn rate_json<S: Serializer>(rate: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if rate.is_finite() { serializer.serialize_f64(*rate) } else { serializer.serialize_str("inf") }
}

/// One measurement.
#[derive(Clone, Debug)]
pub struct Plan {
    pub arrivals: Arrivals,
    /// Requests at most
    pub requests: usize,
    /// No request begins later
    pub duration: Option<Duration>,
    /// Of prompts and arrivals; each measurement has its own
    pub series: u64,
    pub seed: u64,
}

/// Sends what the plan says and waits for all answers. `done` hears of each.
pub async fn run(
    client: &Arc<Client>,
    workload: &Arc<Workload>,
    plan: &Plan,
    done: impl Fn(&Record) + Clone + Send + 'static,
) -> Vec<Record> {
    match plan.arrivals {
        Arrivals::Concurrency(streams) => closed(client, workload, plan, streams, done).await,
        Arrivals::Rate(rate) => open(client, workload, plan, rate, done).await,
    }
}

async fn closed(
    client: &Arc<Client>,
    workload: &Arc<Workload>,
    plan: &Plan,
    streams: usize,
    done: impl Fn(&Record) + Clone + Send + 'static,
) -> Vec<Record> {
    let next = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..streams.min(plan.requests) {
        let (client, workload, plan, next, done) =
            (Arc::clone(client), Arc::clone(workload), plan.clone(), Arc::clone(&next), done.clone());
        tasks.spawn(async move {
            let mut records = Vec::new();
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= plan.requests || plan.duration.is_some_and(|time| began.elapsed() >= time) {
                    return records;
                }
                let request = workload.request(plan.series, i as u64);
                let start_s = began.elapsed().as_secs_f64();
                let record = Record { start_s, ..client.ask(&request).await };
                done(&record);
                records.push(record);
            }
        });
    }
    tasks.join_all().await.concat()
}

async fn open(
    client: &Arc<Client>,
    workload: &Arc<Workload>,
    plan: &Plan,
    rate: f64,
    done: impl Fn(&Record) + Clone + Send + 'static,
) -> Vec<Record> {
    let began = time::Instant::now();
    let mut tasks = JoinSet::new();
    for (i, at) in arrivals(rate, plan).enumerate() {
        let planned = began + at;
        sleep_until(planned).await;
        let (client, workload, series, done) = (Arc::clone(client), Arc::clone(workload), plan.series, done.clone());
        tasks.spawn(async move {
            let request = workload.request(series, i as u64);
            let (start_s, late_s) = (began.elapsed().as_secs_f64(), planned.elapsed().as_secs_f64());
            let record = Record { start_s, late_s, ..client.ask(&request).await };
            done(&record);
            record
        });
    }
    tasks.join_all().await
}

/// When requests come, counted from the start.
fn arrivals(rate: f64, plan: &Plan) -> impl Iterator<Item = Duration> {
    let mut random = Random::of(&[plan.seed, ARRIVALS, plan.series]);
    let mut at = 0.0;
    let next = move || {
        let now = at;
        at += random.gap(rate);
        Duration::try_from_secs_f64(now).unwrap_or(Duration::MAX)
    };
    let end = plan.duration.unwrap_or(Duration::MAX);
    std::iter::repeat_with(next).take(plan.requests).take_while(move |at| *at < end)
}

/// First number of the path to their random numbers
const ARRIVALS: u64 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_keep_to_the_rate_the_number_and_the_time() {
        let plan = Plan { arrivals: Arrivals::Rate(50.0), requests: 5000, duration: None, series: 0, seed: 1 };
        let times: Vec<Duration> = arrivals(50.0, &plan).collect();
        assert_eq!((times.len(), times[0]), (5000, Duration::ZERO));
        assert!(times.is_sorted());
        let last = times[4999].as_secs_f64();
        assert!((95.0..105.0).contains(&last), "{last}");
        let short = Plan { duration: Some(Duration::from_secs(2)), ..plan.clone() };
        let within: Vec<Duration> = arrivals(50.0, &short).collect();
        assert!(within.len() < 150 && within[..] == times[..within.len()], "{}", within.len());
        assert_ne!(arrivals(50.0, &Plan { series: 1, ..plan.clone() }).nth(1), Some(times[1]));
        // An infinite rate: all at once.
        assert!(arrivals(f64::INFINITY, &plan).all(|at| at == Duration::ZERO));
    }

    #[test]
    fn arrivals_are_named_in_json() {
        let json = |arrivals: Arrivals| serde_json::to_string(&arrivals).unwrap();
        assert_eq!(json(Arrivals::Concurrency(4)), r#"{"concurrency":4}"#);
        assert_eq!(json(Arrivals::Rate(2.5)), r#"{"rate":2.5}"#);
        assert_eq!(json(Arrivals::Rate(f64::INFINITY)), r#"{"rate":"inf"}"#);
    }
}
