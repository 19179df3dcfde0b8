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

/// See the module's documentation.
pub struct Held<T> {
    body: Body,
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
        Self { body, held }
    }
}

impl<T: Watch + Unpin> HttpBody for Held<T> {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(bytes) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map(Bytes::len) {
            self.held.sent(bytes);
        }
        if frame.is_none() || self.body.is_end_stream() {
            self.held.ended();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
