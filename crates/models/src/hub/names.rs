//! Checks on every name that comes from outside, before it becomes part of a path or a URL.

use super::HubError;

const MAX_NAME_BYTES: usize = 512;

/// Accepts a relative file path of plain components; anything that could leave its folder is an error.
pub(crate) fn check_relative_path(name: &str) -> Result<(), HubError> {
    let bad = |why| Err(HubError::BadName { what: "file name", name: name.chars().take(120).collect(), why });
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return bad("it must have 1 to 512 bytes");
    }
    if name.chars().any(|c| c.is_control() || c == '\\' || c == ':') {
        return bad("control characters, backslashes and colons are not allowed");
    }
    if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return bad("it must be relative and stay inside its folder");
    }
    Ok(())
}

/// Accepts a repository id `org/name` as the hub spells them.
pub(crate) fn check_repo_id(repo: &str) -> Result<(), HubError> {
    let bad = |why| Err(HubError::BadName { what: "Hugging Face id", name: repo.chars().take(120).collect(), why });
    let mut parts = repo.split('/');
    let (Some(org), Some(name), None) = (parts.next(), parts.next(), parts.next()) else {
        return bad("it must have the form org/name");
    };
    for part in [org, name] {
        if part.is_empty() || part.len() > 96 || !part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
            return bad("each half must be 1 to 96 letters, digits, '-', '_' or '.'");
        }
        // "--" separates the halves in cache folder names; a leading dot or dash would hide a folder or look like a flag.
        if part.contains("--") || part.contains("..") || part.starts_with(['.', '-']) || part.ends_with(['.', '-']) {
            return bad("'--', '..' and a leading or trailing '.' or '-' are not allowed");
        }
    }
    Ok(())
}

/// True for a hash in lower-case hexadecimal of `len` digits.
pub(crate) fn is_hex(s: &str, len: usize) -> bool {
    s.len() == len && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// True for a full commit id, the only revision that is ever used as a folder name.
pub(crate) fn is_commit(s: &str) -> bool {
    is_hex(s, 40)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_their_folder_are_refused() {
        for bad in ["", ".", "..", "../x", "a/../b", "/etc/passwd", "a//b", "a/", "a\\..\\b", "C:x", "a\0b", "a\nb", "./a"] {
            assert!(check_relative_path(bad).is_err(), "{bad:?}");
        }
        for good in ["model.gguf", "Q4_K_M/model-00001-of-00002.gguf", "..hidden", "a...b"] {
            assert!(check_relative_path(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn repository_ids() {
        for good in ["org/name", "Qwen/Qwen2.5-0.5B-Instruct-GGUF", "a/b_c"] {
            assert!(check_repo_id(good).is_ok(), "{good:?}");
        }
        for bad in ["name", "a/b/c", "a/", "/b", "../b", "a/..", "a/b--c", "a/.b", "a/-b", "a b/c", "a/b?x=1", "a/b#c", "é/b", "a/b%2e"] {
            assert!(check_repo_id(bad).is_err(), "{bad:?}");
        }
    }
}
