//! What each user has been served, so that the next free place goes to whoever had least: virtual token counters (Sheng et
//! al. 2024, arXiv:2401.00588), of accounts, and within each of its users. Pure.

use std::{collections::HashMap, hash::Hash};

/// Whom a request belongs to. Requests without a user are those of one user, [`UserId::default`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId {
    /// Accounts are served alike, however many users each has
    pub account: u32,
    /// Users of one account are served alike
    pub user: u64,
}

/// Users, and accounts, without requests that are remembered.
const MAX_IDLE: usize = 1024;
/// A generated token takes a step of its own; a token of a prompt shares one with many.
const GENERATED_WEIGHT: u64 = 2;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Users {
    accounts: Counters<u32>,
    users: Counters<UserId>,
}

impl Users {
    /// A request has come.
    pub fn enter(&mut self, user: UserId) {
        self.accounts.enter(user.account, |_| true);
        self.users.enter(user, |other| other.account == user.account);
    }

    /// A request has ended.
    pub fn leave(&mut self, user: UserId) {
        self.accounts.leave(user.account);
        self.users.leave(user);
    }

    /// A step computed tokens for a user and generated some.
    pub fn serve(&mut self, user: UserId, computed: usize, generated: usize) {
        let tokens = computed as u64 + (GENERATED_WEIGHT - 1) * generated as u64;
        self.accounts.serve(user.account, tokens);
        self.users.serve(user, tokens);
    }

    /// What the user's account has been served, and the user: the least of these is next.
    pub fn served(&self, user: UserId) -> (u64, u64) {
        (self.accounts.served(user.account), self.users.served(user))
    }

    /// Users with requests.
    pub fn active(&self) -> usize {
        self.users.active
    }

    /// Requests of all users.
    pub fn requests(&self) -> usize {
        self.users.all.values().map(|u| u.requests).sum()
    }
}

/// What each of many has been served.
#[derive(Debug)]
struct Counters<K> {
    all: HashMap<K, Counter>,
    /// Those with requests
    active: usize,
}

#[derive(Debug, Default)]
struct Counter {
    /// Tokens, those that were generated counted [`GENERATED_WEIGHT`] times
    served: u64,
    /// Requests that wait or run
    requests: usize,
}

impl<K> Default for Counters<K> {
    fn default() -> Self {
        Self { all: HashMap::new(), active: 0 }
    }
}

impl<K: Copy + Eq + Hash> Counters<K> {
    /// A request has come. Whoever was away has saved up nothing: it starts with the least that any peer present has had.
    fn enter(&mut self, key: K, is_peer: impl Fn(&K) -> bool) {
        if self.all.get(&key).is_none_or(|known| known.requests == 0) {
            let present = self.all.iter().filter(|(other, counter)| counter.requests > 0 && is_peer(other));
            let least = present.map(|(_, counter)| counter.served).min();
            let known = self.all.entry(key).or_default();
            known.served = known.served.max(least.unwrap_or(0));
            self.active += 1;
        }
        self.all.entry(key).or_default().requests += 1;
    }

    fn leave(&mut self, key: K) {
        let Some(known) = self.all.get_mut(&key) else { return };
        known.requests -= 1;
        if known.requests == 0 {
            self.active -= 1;
            if self.all.len() - self.active > MAX_IDLE {
                self.all.retain(|_, counter| counter.requests > 0);
            }
        }
    }

    fn serve(&mut self, key: K, tokens: u64) {
        if let Some(known) = self.all.get_mut(&key) {
            known.served += tokens;
        }
    }

    fn served(&self, key: K) -> u64 {
        self.all.get(&key).map_or(0, |counter| counter.served)
    }
}
