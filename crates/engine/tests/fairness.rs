//! Who is served when there is too little for all, through the scheduler alone.

use std::collections::HashMap;

use ferrum_engine::{BlockPool, ContextFull, Limits, NewSequence, Outcome, RequestId, Scheduler, StepTimes, UserId};
use proptest::{collection::vec, prelude::*};

const MAX_SEQS: usize = 4;
const PROMPT: usize = 20;
const ANSWER: usize = 15;

fn scheduler(blocks: u32) -> Scheduler {
    let limits = Limits {
        max_context: 64,
        max_seqs: MAX_SEQS,
        max_step_tokens: 32,
        max_waiting: 1000,
        max_drafts: 0,
        max_step_drafts: 0,
        drafting_model: false,
    };
    Scheduler::new(limits, BlockPool::new(blocks, 4, true))
}

fn submit(scheduler: &mut Scheduler, user: u64, priority: i32, length: usize) -> RequestId {
    submit_of(scheduler, UserId { account: 0, user }, priority, length)
}

fn submit_of(scheduler: &mut Scheduler, user: UserId, priority: i32, length: usize) -> RequestId {
    let number = scheduler.counts().computed_tokens as u32 + scheduler.waiting() as u32;
    submit_prompt(scheduler, user, priority, (0..length as u32).map(|i| number * 64 + i).collect())
}

fn submit_prompt(scheduler: &mut Scheduler, user: UserId, priority: i32, prompt: Vec<u32>) -> RequestId {
    let sequence = NewSequence {
        reuses: true,
        prompt,
        max_tokens: ANSWER,
        stop_tokens: [].into(),
        priority,
        user,
        on_context_full: ContextFull::Finish,
        speculates: false,
        tag: user.user as usize,
    };
    scheduler.submit(sequence).unwrap()
}

fn step(scheduler: &mut Scheduler) -> Vec<Outcome> {
    scheduler.speculate(&StepTimes::new(0));
    let plan = scheduler.plan();
    let tokens = vec![7; plan.samples()];
    let mut outcomes = Vec::new();
    scheduler.commit(plan, &tokens, &mut outcomes);
    scheduler.check_integrity().unwrap();
    outcomes
}

/// One user has sent 200 requests when another sends its first: that one gets the first free place.
#[test]
fn a_newcomer_does_not_wait_behind_a_crowd() {
    let mut scheduler = scheduler(100);
    (0..200).for_each(|_| {
        submit(&mut scheduler, 1, 0, PROMPT);
    });
    (0..30).for_each(|_| drop(step(&mut scheduler)));
    for _ in 0..5 {
        let id = submit(&mut scheduler, 2, 0, PROMPT);
        let steps = (0..).find(|_| step(&mut scheduler).iter().any(|o| o.id == id && o.finished.is_some())).unwrap();
        assert!(steps <= 2 * ANSWER + 4, "{steps} steps, of which {ANSWER} are its own");
    }
    // One user alone would have gone on in the order of arrival.
    assert!(scheduler.waiting() > 100);
}

#[test]
fn priority_comes_before_fairness() {
    let mut scheduler = scheduler(100);
    let urgent: Vec<_> = (0..8).map(|_| submit(&mut scheduler, 1, -1, PROMPT)).collect();
    let other = submit(&mut scheduler, 2, 0, PROMPT);
    let mut ended = Vec::new();
    while ended.len() < 9 {
        ended.extend(step(&mut scheduler).iter().filter(|o| o.finished.is_some()).map(|o| o.id));
    }
    assert!(ended[..4].iter().all(|id| urgent.contains(id)));
    let before = ended.iter().position(|&id| id == other).unwrap();
    assert!(before >= 4, "the urgent ones began first");
}

/// Twenty users of one account together get no more than the one of another, and alike among themselves.
#[test]
fn accounts_are_served_alike_however_many_users_they_have() {
    let mut scheduler = scheduler(100);
    let lone = UserId { account: 2, user: 99 };
    let mut ended: HashMap<usize, usize> = HashMap::new();
    for number in 0..2000 {
        while scheduler.waiting() < 200 {
            for user in 0..20 {
                submit_of(&mut scheduler, lone, 0, PROMPT);
                submit_of(&mut scheduler, UserId { account: 1, user }, 0, PROMPT);
            }
        }
        for outcome in step(&mut scheduler).iter().filter(|o| number >= 200 && o.finished.is_some()) {
            *ended.entry(outcome.tag).or_default() += 1;
        }
    }
    let alone = ended.remove(&99).unwrap();
    let (together, least, most) = (ended.values().sum::<usize>(), ended.values().min().unwrap(), ended.values().max().unwrap());
    assert!(alone.abs_diff(together) <= 2 * MAX_SEQS, "{alone} requests of the one, {together} of the others");
    assert!(ended.len() == 20 && most - least <= MAX_SEQS, "{ended:?}");
}

/// A user whose prompts the cache has gets as many tokens computed as another, and so more answers.
#[test]
fn text_from_the_cache_is_not_charged() {
    const LONG: usize = 2 * PROMPT;
    let mut scheduler = scheduler(200);
    for _ in 0..400 {
        submit_prompt(&mut scheduler, UserId { account: 0, user: 1 }, 0, (0..LONG as u32).collect());
        submit(&mut scheduler, 2, 0, LONG);
    }
    let mut ended = [0; 3];
    while ended[1] < 300 {
        step(&mut scheduler).iter().filter(|o| o.finished.is_some()).for_each(|o| ended[o.tag] += 1);
    }
    // 40 tokens of a prompt and 15 of an answer, these counted twice; of the prompt in the cache at most a block is computed.
    let ratio = f64::from(ended[1]) / f64::from(ended[2]);
    let (least, most) = ((LONG + 2 * ANSWER) as f64 / (4 + 2 * ANSWER) as f64, (LONG + 2 * ANSWER) as f64 / (2 * ANSWER) as f64);
    assert!((0.95 * least..1.05 * most).contains(&ratio), "{ended:?}: {ratio}, not {least} to {most}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// As long as two users both have requests waiting, neither gets more than the other but for what is running: at most
    /// all places with the largest requests.
    #[test]
    fn users_with_work_waiting_are_served_alike(
        lengths in vec(1usize..40, 2..5),
        blocks in 16u32..80,
        late in 0usize..60,
    ) {
        let mut scheduler = scheduler(blocks);
        let mut served: HashMap<usize, u64> = HashMap::new();
        let mut base: HashMap<usize, u64> = HashMap::new();
        for number in 0..600 {
            for (user, &length) in lengths.iter().enumerate() {
                // The last one comes late, and has saved up nothing.
                let here = user + 1 < lengths.len() || number >= late;
                while here && scheduler.waiting() < 900 && base.get(&user).is_none_or(|&sent| sent < number as u64 / 4 + 8) {
                    submit(&mut scheduler, user as u64, 0, length);
                    *base.entry(user).or_default() += 1;
                }
            }
            for outcome in step(&mut scheduler) {
                if number >= late + 100 {
                    *served.entry(outcome.tag).or_default() += 2;
                    // The prompt is charged as it is computed; here when its request ends.
                    if outcome.finished.is_some() {
                        *served.entry(outcome.tag).or_default() += lengths[outcome.tag] as u64;
                    }
                }
            }
        }
        prop_assert_eq!(served.len(), lengths.len(), "somebody starved");
        let (least, most) = (served.values().min().unwrap(), served.values().max().unwrap());
        let bound = 2 * MAX_SEQS as u64 * (40 + 2 * ANSWER as u64);
        prop_assert!(most - least <= bound, "{:?}, more than {} apart", served, bound);
    }
}
