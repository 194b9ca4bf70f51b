package kube

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"meridian.dev/e2e/client"
)

// booting names the directory of the node whose first process this is.
const booting = "MERIDIAN_KUBE_NODE"

// foreign names a tree whose /usr the node has instead of the machine's.
const foreign = "MERIDIAN_KUBE_TREE"

// Boot is the first call of every program that starts a cluster: in a node's first process it never returns.
func Boot() {
	directory := os.Getenv(booting)
	if directory == "" {
		return
	}
	if err := prepare(directory); err != nil {
		fmt.Fprintln(os.Stderr, "node:", err)
		os.Exit(1)
	}
	fmt.Println("booted") // whoever started this process waits for it
	reap()
}

// tunables are what a kubelet wants of the kernel, and would write into the machine's own /proc/sys.
var tunables = map[string]string{
	"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
	"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}

// prepare gives the node its own view: mounts that nobody else sees, /proc of its processes, an empty /run, logs on its
// own disk, a boot id that is new with every boot, and files in place of the kernel's settings.
func prepare(directory string) error {
	type mount struct {
		source, target, kind string
		flags                uintptr
	}
	mounts := []mount{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE},
		{"", "/", "", unix.MS_REC | unix.MS_SHARED},
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV},
		{filepath.Join(directory, "log"), "/var/log", "", unix.MS_BIND},
	}
	if tree := os.Getenv(foreign); tree != "" {
		mounts = append(mounts, mount{filepath.Join(tree, "usr"), "/usr", "", unix.MS_BIND})
	}
	for _, m := range mounts {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.source, m.target, err)
		}
	}
	id := client.Unique() + client.Unique()
	files := map[string]string{"/proc/sys/kernel/random/boot_id": id[:8] + "-" + id[8:12] + "-4" + id[12:15] + "-8" + id[15:18] + "-" + id[12:24]}
	for name, value := range tunables {
		files["/proc/sys/"+name] = value
	}
	var errs []error
	for target, content := range files {
		errs = append(errs, cover(target, filepath.Join("/run/kernel", filepath.Base(target)), content+"\n"))
	}
	return errors.Join(errs...)
}

func cover(target, file, content string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		return err
	}
	if err := unix.Mount(file, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("cover %s: %w", target, err)
	}
	return nil
}

// reap is what a node's first process does until it is killed, and all of the node's processes with it.
func reap() {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	for range children {
		for {
			var status syscall.WaitStatus
			if pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil); pid <= 0 && !errors.Is(err, syscall.EINTR) {
				break
			}
		}
	}
}
