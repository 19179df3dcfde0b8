//! What drawing needs to know of the requests that wait or run.

use ferrum_kernels::ops::{LogitBias, SampleParams};

use crate::{counts::History, grammar::Constraint, plan::RequestId, read_prompt::PromptReader};

/// One request.
pub(crate) struct Active {
    pub id: RequestId,
    pub params: SampleParams,
    /// Only with penalties
    pub history: Option<History>,
    /// How many of the likeliest tokens are wanted with their log-probabilities; `None`: no log-probabilities
    pub logprobs: Option<usize>,
    pub biases: Vec<LogitBias>,
    pub constraint: Option<Constraint>,
    pub reader: Option<PromptReader>,
}

impl Active {
    /// Whether its tokens are drawn from logits, or somebody reads these. Else the output head finds the likeliest token, and
    /// no logits are left.
    pub fn needs_logits(&self) -> bool {
        self.history.is_some() || self.params.temperature != 0.0 || self.logprobs.is_some()
    }

    /// Whether some tokens are banned or have a bias.
    pub fn is_masked(&self) -> bool {
        self.constraint.is_some() || !self.biases.is_empty()
    }

    /// Whether what becomes of its tokens changes what is drawn next.
    pub fn has_state(&self) -> bool {
        self.constraint.is_some() || self.history.is_some()
    }
}

/// How many active requests need more than their likeliest tokens. Where nobody does, a step need not look at them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// [`Active::needs_logits`]
    pub logits: usize,
    /// [`Active::is_masked`]
    pub masks: usize,
    pub logprobs: usize,
    /// Something of the prompt
    pub reading: usize,
    /// [`Active::has_state`]
    pub states: usize,
}

impl Needs {
    pub fn of<'a>(all: impl IntoIterator<Item = &'a Active>) -> Self {
        let mut needs = Self::default();
        all.into_iter().for_each(|active| needs.add(active));
        needs
    }

    pub fn add(&mut self, active: &Active) {
        self.change(active, |count| count + 1);
    }

    pub fn remove(&mut self, active: &Active) {
        self.change(active, |count| count - 1);
    }

    fn change(&mut self, active: &Active, changed: impl Fn(usize) -> usize) {
        for (count, needed) in [
            (&mut self.logits, active.needs_logits()),
            (&mut self.masks, active.is_masked()),
            (&mut self.logprobs, active.logprobs.is_some()),
            (&mut self.reading, active.reader.is_some()),
            (&mut self.states, active.has_state()),
        ] {
            if needed {
                *count = changed(*count);
            }
        }
    }
}
