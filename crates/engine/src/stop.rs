//! Stop strings in streamed text.

use crate::error::SubmitError;

/// Most stop strings of one request.
pub const MAX_STOP_STRINGS: usize = 64;
/// Longest stop string.
pub const MAX_STOP_BYTES: usize = 1024;

/// Lets text through up to the first stop string, and holds back whatever may be the beginning of one.
///
/// The first stop string is the one that is complete first; of several that end at the same place, the longest. So the
/// result does not depend on how the text is cut into pieces.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    /// The one that has come: its index
    stopped: Option<usize>,
}

impl StopStrings {
    /// # Errors
    /// When a string is empty or too long, or there are too many.
    pub fn new(stops: &[String]) -> Result<Self, SubmitError> {
        if stops.len() > MAX_STOP_STRINGS {
            let requirement = format!("at most {MAX_STOP_STRINGS} are allowed");
            return Err(SubmitError::invalid("stop", format!("{} strings", stops.len()), requirement));
        }
        if let Some(stop) = stops.iter().find(|s| s.is_empty() || s.len() > MAX_STOP_BYTES) {
            let requirement = format!("each must have 1 to {MAX_STOP_BYTES} bytes");
            return Err(SubmitError::invalid("stop", format!("a string of {} bytes", stop.len()), requirement));
        }
        Ok(Self { stops: stops.to_vec(), held: String::new(), stopped: None })
    }

    /// Takes the next piece and returns what can be shown now.
    pub fn push(&mut self, text: &str) -> String {
        if self.stopped() {
            return String::new();
        }
        self.held.push_str(text);
        let ends = |(index, stop): (usize, &String)| self.held.find(stop.as_str()).map(|start| (start + stop.len(), start, index));
        if let Some((_, start, index)) = self.stops.iter().enumerate().filter_map(ends).min() {
            self.stopped = Some(index);
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let keep = self.stops.iter().map(|stop| self.beginning_of(stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// Whether a stop string has come.
    pub fn stopped(&self) -> bool {
        self.stopped.is_some()
    }

    /// The stop string that has come.
    pub fn stop(&self) -> Option<&str> {
        Some(&self.stops[self.stopped?])
    }

    /// Ends the stream: what was held back was no stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of the held text that `stop` begins with.
    fn beginning_of(&self, stop: &str) -> usize {
        let (held, stop) = (self.held.as_bytes(), stop.as_bytes());
        (1..stop.len().min(held.len() + 1)).rev().find(|&len| held.ends_with(&stop[..len])).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Text before the stop string that is complete first, by looking at every end in turn.
    fn cut<'a>(text: &'a str, stops: &[String]) -> (&'a str, bool) {
        let ends = (0..=text.len()).filter(|&end| text.is_char_boundary(end));
        for end in ends {
            if let Some(longest) = stops.iter().filter(|s| text[..end].ends_with(s.as_str())).map(String::len).max() {
                return (&text[..end - longest], true);
            }
        }
        (text, false)
    }

    proptest! {
        #[test]
        fn nothing_of_a_stop_string_is_shown(
            pieces in prop::collection::vec("[abé🙂]{0,4}", 0..12),
            stops in prop::collection::vec("[abé🙂]{1,4}", 0..4),
        ) {
            let mut filter = StopStrings::new(&stops).unwrap();
            let whole = pieces.concat();
            let (want, stopped) = cut(&whole, &stops);
            let mut shown = String::new();
            for piece in &pieces {
                shown += &filter.push(piece);
                prop_assert!(want.starts_with(&shown));
            }
            shown += &filter.finish();
            prop_assert_eq!(shown, want);
            prop_assert_eq!(filter.stopped(), stopped);
        }
    }

    #[test]
    fn text_is_not_held_longer_than_needed() {
        let mut filter = StopStrings::new(&["STOP".into(), "\n\n".into()]).unwrap();
        let shown: Vec<String> = ["a", "S", "T", "x", "\n", "b"].iter().map(|p| filter.push(p)).collect();
        assert_eq!(shown, ["a", "", "", "STx", "", "\nb"]);
    }

    #[test]
    fn hostile_stop_strings_are_refused() {
        for stops in [vec![String::new()], vec!["x".repeat(1025)], vec!["x".into(); 65]] {
            assert!(matches!(StopStrings::new(&stops), Err(SubmitError::Invalid { field: "stop", .. })));
        }
    }
}
