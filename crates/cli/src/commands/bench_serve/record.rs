//! What is known of one request when it is over.

use super::failure::Failure;

/// Times are in seconds; those of the answer count from the moment the request was begun.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// When it was begun, counted from the start of the measurement
    pub start_s: f64,
    /// How much later that was than planned
    pub late_s: f64,
    /// When each event came that brought a part of the answer
    pub tokens_s: Vec<f64>,
    /// When the answer was complete, or failed
    pub end_s: f64,
    /// As the server counts them; as asked where it does not say
    pub prompt_tokens: usize,
    /// Those of the prompt that the server found in its cache, where it says
    pub cached_tokens: Option<usize>,
    /// As the server counts them, else the events
    pub output_tokens: usize,
    /// Whether the server counted the tokens
    pub counted: bool,
    /// What was asked for, where that was exact
    pub asked: Asked,
    pub failure: Option<Failure>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    pub prompt_tokens: Option<usize>,
    pub output_tokens: Option<usize>,
}

impl Record {
    /// Time to first token
    pub fn ttft_s(&self) -> Option<f64> {
        self.tokens_s.first().copied()
    }

    /// Time per output token after the first
    pub fn tpot_s(&self) -> Option<f64> {
        let (first, last) = (self.tokens_s.first()?, self.tokens_s.last()?);
        (self.output_tokens > 1).then(|| (last - first) / (self.output_tokens - 1) as f64)
    }

    /// Times between events, each of which is a token unless the server joins some
    pub fn itl_s(&self) -> impl Iterator<Item = f64> {
        self.tokens_s.windows(2).map(|pair| pair[1] - pair[0])
    }

    pub fn e2e_s(&self) -> f64 {
        self.end_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_follow_from_when_tokens_came() {
        let record = Record { tokens_s: vec![0.5, 0.75, 0.875], output_tokens: 4, end_s: 1.0, ..Record::default() };
        assert_eq!((record.ttft_s(), record.tpot_s(), record.e2e_s()), (Some(0.5), Some(0.125), 1.0));
        assert_eq!(record.itl_s().collect::<Vec<_>>(), [0.25, 0.125]);
        assert_eq!(Record::default().tpot_s(), None);
    }
}
