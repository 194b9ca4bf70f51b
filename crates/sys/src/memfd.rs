//! Sealed memory files: bytes that nobody can change any more, passed by descriptor.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create};

use crate::{Errno, Result, errno_of};

const SEALS: SealFlags =
    SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::SEAL);

/// A sealed memory file with these bytes. `name` shows up in `/proc/PID/maps` only.
///
/// # References
/// memfd_create(2), `F_ADD_SEALS` in fcntl(2).
pub fn sealed(name: &str, bytes: &[u8]) -> Result<OwnedFd> {
    let mut file = create(name, MemfdFlags::empty())?;
    file.write_all(bytes).map_err(|e| errno_of(&e))?;
    seal(file)
}

/// A sealed, executable copy of a program, so that neither its file nor a container that reaches it through
/// `/proc/PID/exe` can change what runs (CVE-2019-5736).
pub fn sealed_copy(name: &str, program: &mut impl Read) -> Result<OwnedFd> {
    let mut file = match create(name, MemfdFlags::EXEC) {
        Err(Errno::INVAL) => create(name, MemfdFlags::empty())?, // before Linux 6.3: always executable
        other => other?,
    };
    io::copy(program, &mut file).map_err(|e| errno_of(&e))?;
    seal(file)
}

/// The bytes of a memory file that came from another process: it must be sealed against every change and hold at
/// most `limit` bytes.
///
/// # Errors
/// `EPERM` when a seal is missing, `EFBIG` when it is larger.
pub fn read(fd: impl AsFd, limit: u64) -> Result<Vec<u8>> {
    let fd = fd.as_fd();
    if !fcntl_get_seals(fd)?.contains(SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW) {
        return Err(Errno::PERM);
    }
    let size = u64::try_from(fstat(fd)?.st_size).map_err(|_| Errno::FBIG)?;
    if size > limit {
        return Err(Errno::FBIG);
    }
    let mut bytes = vec![0; usize::try_from(size).map_err(|_| Errno::FBIG)?];
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pread(fd, &mut bytes[done..], done as u64)? {
            0 => return Err(Errno::IO),
            n => done += n,
        }
    }
    Ok(bytes)
}

fn create(name: &str, flags: MemfdFlags) -> Result<File> {
    memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | flags).map(File::from)
}

fn seal(file: File) -> Result<OwnedFd> {
    fcntl_add_seals(&file, SEALS)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_bytes_come_back_and_cannot_change() {
        let fd = sealed("test", b"plan").unwrap();
        assert_eq!(read(&fd, 4).unwrap(), b"plan");
        assert_eq!(read(&fd, 3), Err(Errno::FBIG));
        assert_eq!(rustix::io::pwrite(&fd, b"x", 0), Err(Errno::PERM));
    }

    #[test]
    fn unsealed_memory_is_refused() {
        let file = create("test", MemfdFlags::empty()).unwrap();
        assert_eq!(read(&file, 10), Err(Errno::PERM));
    }
}
