//! When packed weights get panels in memory.
//!
//! A product from the file's rows costs about the same time again for rearranging them, each time; panels in memory cost it
//! once, and what fresh memory takes, which may be a hundred times more. So the time of products is the budget: rearranging for
//! good takes no more of it than they did. Whatever memory costs, tokens take at most twice their time on average, one of them
//! that of a piece more (4 MiB: tens of milliseconds where memory is slowest), and it ends soon where memory is at hand.

/// As many tokens earn the whole time of a product. Of more the product takes longer, and rearranging for it does not.
const TOKENS: usize = 8;

/// Time that rearranging may take.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Weights that are not wholly in panels
    pub waiting: usize,
    /// What products of few tokens earned, and those of many: a prompt does not pay for what generation saved.
    seconds: [f64; 2],
}

impl Pace {
    /// A product of `tokens` took `seconds`.
    pub fn earn(&mut self, seconds: f64, tokens: usize) {
        self.seconds[of(tokens)] += seconds * (TOKENS as f64 / tokens as f64).min(1.0);
    }

    /// Rearranging took `seconds` before a product of `tokens`.
    pub fn spend(&mut self, seconds: f64, tokens: usize) {
        self.seconds[of(tokens)] -= seconds;
    }

    /// Whether there is time left before a product of `tokens`.
    pub fn may_spend(&self, tokens: usize) -> bool {
        self.seconds[of(tokens)] > 0.0
    }
}

fn of(tokens: usize) -> usize {
    usize::from(tokens > TOKENS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rearranging_takes_as_long_as_products_of_few_tokens_did() {
        let mut pace = Pace::default();
        assert!(!pace.may_spend(1));
        pace.earn(1.0, 1);
        assert!(!pace.may_spend(512));
        pace.earn(64.0, 512);
        pace.spend(0.9, 8);
        pace.spend(0.9, 512);
        assert!(pace.may_spend(1) && pace.may_spend(512));
        pace.spend(0.2, 1);
        pace.spend(0.2, 9);
        assert!(!pace.may_spend(1) && !pace.may_spend(9), "what was overspent is earned first");
        pace.earn(0.05, 8);
        assert!(!pace.may_spend(8));
    }
}
