//! One request through the engine, shown as it arrives.

use std::{io, ops::ControlFlow};

use ferrum_engine::{Answer, Request, TextOptions};

use crate::{interrupt, open::Session};

/// Runs `request` to its end, or to Ctrl-C; `show` gets text as soon as it is certain.
///
/// # Errors
/// When the request is refused, the device fails, the file of the weights shrank, or `show` fails.
pub fn answer(
    session: &mut Session,
    request: Request,
    options: TextOptions,
    mut show: impl FnMut(&str) -> io::Result<()>,
) -> anyhow::Result<Answer> {
    let weights = session.checkpoint.weights();
    let mut failure = None;
    let on_step = |text: &str| {
        // First the file: tokens of weights that lost their end are not the model's.
        let shown = weights.check().map_err(anyhow::Error::from).and_then(|()| Ok(show(text)?));
        match shown {
            Ok(()) if !interrupt::pressed() => ControlFlow::Continue(()),
            result => {
                failure = result.err();
                ControlFlow::Break(())
            }
        }
    };
    let answer = session.engine.generate(&session.tokenizer, request, options, on_step)?;
    match failure {
        Some(error) => Err(error),
        None => Ok(answer),
    }
}
