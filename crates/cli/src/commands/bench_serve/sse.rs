//! Server-sent events, as far as answers use them: the data of each event.

use super::failure::Failure;

/// Most bytes of one event: no server's token is as long, and none shall fill the memory.
const MAX_EVENT_BYTES: usize = 16 << 20;

/// Cuts a stream of bytes into events, wherever its pieces begin and end.
#[derive(Debug, Default)]
pub struct Events {
    /// The beginning of a line whose end has not come
    line: Vec<u8>,
    /// The data lines of the event so far
    data: Vec<u8>,
    /// Whether the event has any
    some: bool,
}

impl Events {
    /// Calls `event` with the data of every event that `bytes` complete.
    ///
    /// # Errors
    /// Those of `event`, and an event that is too long.
    pub fn feed(&mut self, mut bytes: &[u8], mut event: impl FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
        while let Some(end) = bytes.iter().position(|&b| b == b'\n') {
            if self.line.is_empty() {
                self.line(&bytes[..end], &mut event)?;
            } else {
                self.line.extend_from_slice(&bytes[..end]);
                let line = std::mem::take(&mut self.line);
                self.line(&line, &mut event)?;
            }
            bytes = &bytes[end + 1..];
        }
        self.line.extend_from_slice(bytes);
        if self.line.len() + self.data.len() > MAX_EVENT_BYTES {
            return Err(Failure::new("malformed", format!("an event of more than {MAX_EVENT_BYTES} bytes")));
        }
        Ok(())
    }

    fn line(&mut self, line: &[u8], event: &mut impl FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if let Some(data) = line.strip_prefix(b"data:") {
            if self.some {
                self.data.push(b'\n');
            }
            self.some = true;
            self.data.extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
        } else if line.is_empty() && self.some {
            self.some = false;
            event(&self.data)?;
            self.data.clear();
        }
        // Names, ids and comments say nothing about an answer.
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(pieces: &[&[u8]]) -> Vec<String> {
        let (mut parser, mut found) = (Events::default(), Vec::new());
        for piece in pieces {
            let event = |data: &[u8]| {
                found.push(String::from_utf8(data.to_vec()).unwrap());
                Ok(())
            };
            parser.feed(piece, event).unwrap();
        }
        found
    }

    #[test]
    fn events_are_the_same_however_the_stream_is_cut() {
        let stream = "data: {\"a\": 1}\n\n: keep-alive\n\nevent: x\ndata:two\r\ndata: lines\r\n\r\ndata: [DONE]\n\ndata: unfinished";
        let expected = ["{\"a\": 1}", "two\nlines", "[DONE]"];
        assert_eq!(events(&[stream.as_bytes()]), expected);
        for size in 1..stream.len() {
            assert_eq!(events(&stream.as_bytes().chunks(size).collect::<Vec<_>>()), expected, "pieces of {size}");
        }
    }

    #[test]
    fn an_endless_event_is_an_error() {
        let mut parser = Events::default();
        let piece = vec![b'x'; 1 << 20];
        let failed = (0..32).find_map(|_| parser.feed(&piece, |_| Ok(())).err());
        assert_eq!(failed.unwrap().kind, "malformed");
    }
}
