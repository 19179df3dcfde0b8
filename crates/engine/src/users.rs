//! What each user has been served, so that the next free place goes to whoever had least: virtual token counters (Sheng et
//! al. 2024, arXiv:2401.00588). Pure.

use std::collections::HashMap;

/// Whom a request belongs to. Requests without a user are those of one user, [`UserId::default`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(pub u64);

/// Users without requests that are remembered.
const MAX_IDLE: usize = 1024;
/// A generated token takes a step of its own; a token of a prompt shares one with many.
const GENERATED_WEIGHT: u64 = 2;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Users {
    users: HashMap<UserId, User>,
    /// Users with requests
    active: usize,
}

#[derive(Debug, Default)]
struct User {
    /// Tokens, those that were generated counted [`GENERATED_WEIGHT`] times
    served: u64,
    /// Requests that wait or run
    requests: usize,
}

impl Users {
    /// A request has come. Whoever was away has saved up nothing: it starts with the least that anyone present has had.
    pub fn enter(&mut self, user: UserId) {
        let least = self.users.values().filter(|u| u.requests > 0).map(|u| u.served).min();
        let known = self.users.entry(user).or_default();
        if known.requests == 0 {
            known.served = known.served.max(least.unwrap_or(0));
            self.active += 1;
        }
        known.requests += 1;
    }

    /// A request has ended.
    pub fn leave(&mut self, user: UserId) {
        let Some(known) = self.users.get_mut(&user) else { return };
        known.requests -= 1;
        if known.requests == 0 {
            self.active -= 1;
            if self.users.len() - self.active > MAX_IDLE {
                self.users.retain(|_, user| user.requests > 0);
            }
        }
    }

    /// A step computed tokens for a user and generated some.
    pub fn serve(&mut self, user: UserId, computed: usize, generated: usize) {
        if let Some(known) = self.users.get_mut(&user) {
            known.served += computed as u64 + (GENERATED_WEIGHT - 1) * generated as u64;
        }
    }

    pub fn served(&self, user: UserId) -> u64 {
        self.users.get(&user).map_or(0, |u| u.served)
    }

    /// Users with requests.
    pub fn active(&self) -> usize {
        self.active
    }

    /// Requests of all users.
    pub fn requests(&self) -> usize {
        self.users.values().map(|u| u.requests).sum()
    }
}
