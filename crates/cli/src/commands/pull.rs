//! `ferrum pull`: download a model.

use ferrum_models::hub::{FilesKind, ModelRef};

use crate::{args::PullArgs, open, output};

pub fn run(args: &PullArgs) -> anyhow::Result<()> {
    let files = open::hub(&args.hub).pull(&ModelRef::parse(&args.model)?)?;
    let (FilesKind::Gguf { paths } | FilesKind::SafetensorsDir { weights: paths, .. }) = files.kind;
    for path in paths {
        output::text(&format!("{}\n", path.display()))?;
    }
    Ok(())
}
