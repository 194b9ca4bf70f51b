//! Archives byte by byte, also those that no tool would write.

/// One header.
#[derive(Clone)]
pub struct Header<'a> {
    pub path: &'a [u8],
    pub kind: u8,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub size: u64,
    pub mtime: u64,
    pub link: &'a [u8],
    pub device: (u32, u32),
}

impl Default for Header<'_> {
    fn default() -> Self {
        Self {
            path: b"",
            kind: b'0',
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: 1,
            link: b"",
            device: (0, 0),
        }
    }
}

#[derive(Clone, Default)]
pub struct Tar(pub Vec<u8>);

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn file(self, path: &str, content: &str) -> Self {
        let header = Header { path: path.as_bytes(), size: content.len() as u64, ..Header::default() };
        self.entry(&header, content.as_bytes())
    }

    pub fn directory(self, path: &str, mode: u32) -> Self {
        self.entry(&Header { path: path.as_bytes(), kind: b'5', mode, ..Header::default() }, b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(
            &Header { path: path.as_bytes(), kind: b'2', link: target.as_bytes(), ..Header::default() },
            b"",
        )
    }

    pub fn hardlink(self, path: &str, target: &str) -> Self {
        self.entry(
            &Header { path: path.as_bytes(), kind: b'1', link: target.as_bytes(), ..Header::default() },
            b"",
        )
    }

    pub fn device(self, path: &str, kind: u8, device: (u32, u32)) -> Self {
        self.entry(&Header { path: path.as_bytes(), kind, device, ..Header::default() }, b"")
    }

    /// An extended header for the entry that follows.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut content = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let length =
                (1..).map(|digits| body + digits).find(|n| body + n.to_string().len() == *n).unwrap();
            content.extend(format!("{length} {key}=").bytes().chain(value.iter().copied()).chain(*b"\n"));
        }
        self.pax_bytes(&content)
    }

    pub fn pax_bytes(self, content: &[u8]) -> Self {
        self.entry(
            &Header { path: b"pax", kind: b'x', size: content.len() as u64, ..Header::default() },
            content,
        )
    }

    pub fn entry(self, header: &Header<'_>, content: &[u8]) -> Self {
        let mut this = self.raw(&raw_header(header));
        this.0.extend(content);
        let padding = this.0.len().next_multiple_of(512) - this.0.len();
        this.0.extend(std::iter::repeat_n(0, padding));
        this
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

/// A ustar header with a right checksum. Names that do not fit are cut.
pub fn raw_header(header: &Header<'_>) -> [u8; 512] {
    let mut block = [0; 512];
    put(&mut block[..100], header.path);
    put(&mut block[100..108], format!("{:07o}", header.mode).as_bytes());
    put(&mut block[108..116], format!("{:07o}", header.uid).as_bytes());
    put(&mut block[116..124], format!("{:07o}", header.gid).as_bytes());
    put(&mut block[124..136], format!("{:011o}", header.size).as_bytes());
    put(&mut block[136..148], format!("{:011o}", header.mtime).as_bytes());
    block[156] = header.kind;
    put(&mut block[157..257], header.link);
    put(&mut block[257..265], b"ustar\x0000");
    put(&mut block[329..337], format!("{:07o}", header.device.0).as_bytes());
    put(&mut block[337..345], format!("{:07o}", header.device.1).as_bytes());
    checksum(&mut block);
    block
}

pub fn checksum(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    put(&mut block[148..156], format!("{sum:06o}\0 ").as_bytes());
}

fn put(field: &mut [u8], value: &[u8]) {
    let length = value.len().min(field.len());
    field[..length].copy_from_slice(&value[..length]);
}
