//! Keys of S3 in the shared credentials file, `~/.aws/credentials`.
//!
//! Only static keys are read: a profile that names another source of credentials (a role, a process, a login) is refused by
//! name rather than passed over.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store::StaticCredentialProvider;
use object_store::aws::{AwsCredential, AwsCredentialProvider};

use super::failure::StoreFailure;

const DEFAULT_PROFILE: &str = "default";

/// A static key. `Debug` is not there: it holds a secret.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Profile {
    pub(super) access_key_id: String,
    pub(super) secret_access_key: String,
    pub(super) session_token: Option<String>,
}

impl Profile {
    pub(super) fn provider(self) -> AwsCredentialProvider {
        let Self { access_key_id, secret_access_key, session_token } = self;
        Arc::new(StaticCredentialProvider::new(AwsCredential {
            key_id: access_key_id,
            secret_key: secret_access_key,
            token: session_token,
        }))
    }
}

/// The key of a profile: the named one, the one that the environment names, or the default one, which need not be there.
pub(super) fn find(named: Option<String>) -> Result<Option<Profile>, StoreFailure> {
    let named = named.or_else(|| std::env::var("AWS_PROFILE").ok().filter(|name| !name.is_empty()));
    let Some(file) = credentials_file() else { return missing(named.as_deref(), "no home directory") };
    match std::fs::read_to_string(&file) {
        Ok(text) => of_text(&text, named.as_deref(), &file),
        Err(error) => missing(named.as_deref(), &format!("{}: {error}", file.display())),
    }
}

fn credentials_file() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("AWS_SHARED_CREDENTIALS_FILE").or_else(|| Some(set("HOME")?.join(".aws/credentials")))
}

/// A profile that nobody asked for may be missing.
fn missing(named: Option<&str>, why: &str) -> Result<Option<Profile>, StoreFailure> {
    match named {
        Some(name) => Err(StoreFailure::setting(format!("the profile {name:?} was not found: {why}"))),
        None => Ok(None),
    }
}

fn of_text(text: &str, named: Option<&str>, file: &Path) -> Result<Option<Profile>, StoreFailure> {
    let name = named.unwrap_or(DEFAULT_PROFILE);
    let (mut inside, mut found) = (false, false);
    let (mut id, mut secret, mut token, mut other) = (None, None, None, None);
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        if let Some(section) = line.strip_prefix('[').and_then(|line| line.split(']').next()) {
            inside = section.trim() == name;
            found |= inside;
        } else if let Some((key, value)) = line.split_once('=').filter(|_| inside) {
            let value = Some(value.trim().to_owned());
            match key.trim() {
                "aws_access_key_id" => id = value,
                "aws_secret_access_key" => secret = value,
                "aws_session_token" => token = value,
                key @ ("role_arn" | "credential_process" | "sso_session" | "sso_start_url" | "login_session") => {
                    other = Some(key.to_owned());
                }
                _ => {}
            }
        }
    }
    match (id, secret) {
        (Some(access_key_id), Some(secret_access_key)) => {
            Ok(Some(Profile { access_key_id, secret_access_key, session_token: token }))
        }
        _ if !found => missing(named, &format!("{} has none of that name", file.display())),
        _ => Err(StoreFailure::setting(format!(
            "the profile {name:?} in {} has no static key{}",
            file.display(),
            other.map_or_else(String::new, |key| format!("; its {key} is not understood"))
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# comment\n[default]\naws_access_key_id = A\naws_secret_access_key=S=1/+\n\n\
                        [ work ]\n; aws_access_key_id = no\naws_access_key_id=B\naws_secret_access_key = T\n\
                        aws_session_token = tok\nregion = eu-west-1\n[role]\nrole_arn = arn:x\nsource_profile = work\n";

    fn read(named: Option<&str>) -> Result<Option<Profile>, String> {
        of_text(FILE, named, Path::new("/c")).map_err(|error| error.to_string())
    }

    #[test]
    fn profiles_are_read() {
        let Ok(Some(key)) = read(None) else { panic!("no key") };
        assert_eq!((key.access_key_id.as_str(), key.secret_access_key.as_str()), ("A", "S=1/+"));
        assert_eq!(key.session_token, None);
        let Ok(Some(key)) = read(Some("work")) else { panic!("no key") };
        assert_eq!((key.access_key_id.as_str(), key.secret_access_key.as_str()), ("B", "T"));
        assert_eq!(key.session_token.as_deref(), Some("tok"));
    }

    #[test]
    fn what_was_asked_for_and_is_not_there_is_named() {
        assert!(read(Some("none")).err().unwrap().contains("\"none\""));
        assert!(read(Some("role")).err().unwrap().contains("role_arn"));
        assert!(matches!(of_text("[other]\n", None, Path::new("/c")), Ok(None)));
    }
}
