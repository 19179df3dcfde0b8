//! A body with something that is dropped behind it: a permit, a line of the log.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::{
    Error,
    body::{Body, HttpBody},
};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

/// hyper drops a body when it has buffered its last piece: with pieces that are small, little is unsent then.
const PIECE_BYTES: usize = 16 << 10;

/// See the module's documentation.
pub struct Held<T> {
    body: Body,
    /// What has come of the body and was too much for one piece
    rest: Bytes,
    pub held: T,
}

/// What is told of a body on its way.
pub trait Watch {
    /// A piece has been taken by the connection.
    fn sent(&mut self, _bytes: usize) {}
    /// The last piece has.
    fn ended(&mut self) {}
}

impl<T> Watch for Option<T> {}

impl<T> Held<T> {
    pub fn new(body: Body, held: T) -> Self {
        Self { body, rest: Bytes::new(), held }
    }
}

impl<T: Watch + Unpin> HttpBody for Held<T> {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut frame = if self.rest.is_empty() {
            ready!(Pin::new(&mut self.body).poll_frame(context))
        } else {
            Some(Ok(Frame::data(std::mem::take(&mut self.rest))))
        };
        if let Some(bytes) = frame.as_mut().and_then(|frame| frame.as_mut().ok()?.data_mut())
            && bytes.len() > PIECE_BYTES
        {
            self.rest = bytes.split_off(PIECE_BYTES);
        }
        if let Some(bytes) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map(Bytes::len) {
            self.held.sent(bytes);
        }
        if frame.is_none() || self.is_end_stream() {
            self.held.ended();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (of_body, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        if let Some(upper) = of_body.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(of_body.lower() + rest);
        hint
    }
}
