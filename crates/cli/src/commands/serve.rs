//! `ferrum serve`: one model behind HTTP.
//!
//! The port is open before the model is loaded, so that `/health` tells that it is loading.

use std::{io::IsTerminal, sync::Arc, thread, time::Duration};

use anyhow::{Context, anyhow};
use ferrum_server::{App, Served, Service, ToolFormat};
use tokio::{net::TcpListener, signal, sync::oneshot};

use crate::{
    args::{LogFormat, ServeArgs},
    interrupt,
    open::{self, Need},
};

pub fn run(args: ServeArgs) -> anyhow::Result<()> {
    // Whoever read the log may have gone; that must not end a request.
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false).log_internal_errors(false);
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let log = log.with_ansi(std::io::stderr().is_terminal() && !no_color);
    if args.log_format == LogFormat::Json {
        // The fields of an event are those of its object.
        log.json().flatten_event(true).init()
    } else {
        log.init()
    }
    // The signals are waited for below; the handler of the other commands would end the program at once.
    let _catch = interrupt::Catch::new();
    let app = Arc::new(App::new(args.http.keys()?, Duration::from_secs(args.stuck_after_s)));
    let options = args.http.options()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("cannot start the I/O threads")?;
    runtime.block_on(async {
        let listener = TcpListener::bind((args.host.as_str(), args.port)).await;
        let listener =
            listener.with_context(|| format!("cannot listen on {}:{}; choose another --host or --port", args.host, args.port))?;
        let address = listener.local_addr()?;
        let scheme = if options.tls.is_some() { "https" } else { "http" };
        tracing::info!("listening on {scheme}://{address}");
        let (loaded, loading) = oneshot::channel();
        let loader = {
            let app = Arc::clone(&app);
            thread::Builder::new().name("load".into()).spawn(move || loaded.send(load(&args, &app)))
        };
        loader.context("cannot start a thread to load the model")?;
        let stop = stop_signal()?;
        let mut server = tokio::spawn(ferrum_server::serve(Arc::clone(&app), listener, options, stop));
        tokio::select! {
            result = loading => {
                let engine = result.map_err(|_| anyhow!("loading the model failed"))??;
                tracing::info!("ready");
                server.await?;
                // Every request has ended or been cut off; the engine ends with the last one.
                engine.join().map_err(|_| anyhow!("the engine failed"))
            }
            result = &mut server => result.context("the server ended"),
        }
    })
}

/// Loads the model and lets requests in.
fn load(args: &ServeArgs, app: &App) -> anyhow::Result<thread::JoinHandle<()>> {
    let need = Need {
        context: args.context.ctx,
        sequences: Some(args.max_seqs),
        max_waiting: Some(args.max_waiting),
        kv_tokens: args.kv_tokens,
        speculate: args.speculate.clone(),
        ..Need::default()
    };
    let session = open::session(&args.model, &args.hub, &args.engine, &need)?;
    let template = session.tokenizer.chat_template_source().is_some().then(|| session.tokenizer.chat_template()).transpose()?;
    let max_context = session.engine.max_context();
    let backend = session.engine.backend().device().name;
    let (service, engine) = Service::start(session.engine).context("cannot start the engine's thread")?;
    app.ready(Served {
        name: args.served_model_name.clone().unwrap_or_else(|| args.model.clone()),
        info: session.info,
        pooling: session.checkpoint.pooling()?,
        tool_format: session.tokenizer.chat_template_source().and_then(ToolFormat::of_template),
        tokenizer: session.tokenizer,
        template,
        sampling: session.sampling,
        max_context,
        max_seqs: args.max_seqs,
        backend,
        service,
    });
    Ok(engine)
}

/// Resolves at the first SIGTERM or Ctrl-C.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    #[cfg(unix)]
    let mut terminate = signal::unix::signal(signal::unix::SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    Ok(async move {
        #[cfg(unix)]
        tokio::select! {
            _ = terminate.recv() => {}
            // Without a handler for Ctrl-C there is still SIGTERM.
            _ = signal::ctrl_c() => {}
        }
        #[cfg(not(unix))]
        let _ = signal::ctrl_c().await;
    })
}
