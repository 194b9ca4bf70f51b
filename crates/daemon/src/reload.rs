//! SIGHUP: reads the configuration again, does what can be done while pods run, and names the rest.

use std::path::PathBuf;

use image::Images;

use crate::chain;
use crate::config::Config;
use crate::flags::Flags;
use crate::logging::Logging;
use crate::node::mirrors;

/// The configuration in force, and what follows its changes.
#[derive(Debug)]
pub struct Reload {
    file: Option<PathBuf>,
    /// `--log` was given, which is stronger than the file.
    log_fixed: bool,
    logging: Logging,
    images: Images,
    config: Config,
}

impl Reload {
    /// `config` is what the daemon was started with.
    pub fn new(flags: &Flags, logging: Logging, images: Images, config: Config) -> Self {
        Self { file: flags.config.clone(), log_fixed: flags.log.is_some(), logging, images, config }
    }

    /// A file that cannot be used changes nothing, and the log says why.
    pub fn run(&mut self) {
        let new = match Config::load(self.file.as_deref()) {
            Ok(new) => new,
            Err(error) => {
                tracing::error!("SIGHUP: the configuration stays as it was: {}", chain(&error));
                return;
            }
        };
        if let Err(error) = self.images.reconfigure(mirrors(&new), new.image.insecure.clone()) {
            tracing::error!("SIGHUP: mirrors stay as they were: {}", chain(&error));
            return;
        }
        if !self.log_fixed {
            self.logging.set(new.log_targets());
        }
        let waiting = self.config.fixed_changes(&new);
        if !waiting.is_empty() {
            let keys = waiting.join(" ");
            tracing::warn!(keys, "SIGHUP: these changes take effect when the daemon is started again");
        }
        // What waits is compared with what is in force the next time, too.
        self.config.image.mirror = new.image.mirror;
        self.config.image.insecure = new.image.insecure;
        self.config.log = new.log;
        tracing::info!("SIGHUP: the configuration was read again");
    }
}
