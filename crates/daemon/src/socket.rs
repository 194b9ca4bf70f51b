//! The unix socket that CRI and the meridian command use.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody answers there.
    #[error("socket {path} is served by another process: stop it or choose another --socket")]
    Live {
        /// As configured.
        path: PathBuf,
    },
    /// Something else has the name.
    #[error("{path} exists and is no socket: remove it or choose another --socket")]
    NotASocket {
        /// As configured.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("listen on socket {path}")]
    Listen {
        /// As configured.
        path: PathBuf,
        /// From the kernel.
        #[source]
        source: io::Error,
    },
}

/// Listens at `path`, for root and the socket's group alone. A socket that nobody serves is replaced; missing
/// directories are made for root alone.
///
/// The socket is bound beside and renamed into place, so that nobody ever meets it with other permissions.
///
/// # Errors
/// See [`SocketError`].
pub fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    check_free(path)?;
    let failed = |source| SocketError::Listen { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed)?;
    }
    let beside = path.with_extension(format!("new-{}", std::process::id()));
    let _ = fs::remove_file(&beside);
    let listener = UnixListener::bind(&beside).map_err(failed)?;
    let placed = fs::set_permissions(&beside, Permissions::from_mode(0o660))
        .and_then(|()| fs::rename(&beside, path))
        .and_then(|()| listener.set_nonblocking(true));
    if let Err(source) = placed {
        let _ = fs::remove_file(&beside);
        return Err(failed(source));
    }
    Ok(listener)
}

fn check_free(path: &Path) -> Result<(), SocketError> {
    let path = path.to_owned();
    match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(SocketError::Listen { path, source }),
        Ok(metadata) if !metadata.file_type().is_socket() => Err(SocketError::NotASocket { path }),
        Ok(_) => match UnixStream::connect(&path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(source) => Err(SocketError::Listen { path, source }),
            Ok(_) => Err(SocketError::Live { path }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sub/m.sock");
        let first = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(matches!(listen(&path), Err(SocketError::Live { .. })));
        drop(first);
        listen(&path).unwrap();
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing beside it");
    }

    #[test]
    fn a_file_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen(&path), Err(SocketError::NotASocket { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
