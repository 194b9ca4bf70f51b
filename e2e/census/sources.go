package census

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// mounts lists this mount namespace by mount point, type and source; ids and options change on their own.
func mounts(Scope) ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, line := range splitLines(string(text)) {
		head, tail, _ := strings.Cut(line, " - ")
		fields, kind := strings.Fields(head), strings.Fields(tail)
		lines = append(lines, fmt.Sprintf("%s %s %s", fields[4], kind[0], kind[1]))
	}
	return lines, nil
}

var namespaceKinds = []string{"mnt", "pid", "net", "ipc", "uts", "user", "cgroup", "time"}

// namespaces lists the inodes that processes here live in. Those that only a bind mount holds are among the mounts.
func namespaces(Scope) ([]string, error) {
	seen := map[string]bool{}
	err := eachProcess(func(pid int) {
		for _, kind := range namespaceKinds {
			if target, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)); err == nil {
				seen[target] = true
			}
		}
	})
	return keys(seen), err
}

// links lists interfaces with their addresses. Link-local ones are left out: the kernel gives them in its own time.
func links(Scope) ([]string, error) {
	interfaces, err := net.Interfaces()
	var lines []string
	for _, link := range interfaces {
		addresses, _ := link.Addrs()
		line := link.Name
		for _, address := range addresses {
			if text := address.String(); !strings.HasPrefix(text, linkLocal) {
				line += " " + text
			}
		}
		lines = append(lines, line)
	}
	return lines, err
}

const linkLocal = "fe80:"

// routes lists all tables, whether or not a link has a carrier at the moment.
func routes(Scope) ([]string, error) {
	all, err := command("ip", "-o", "route", "show", "table", "all")
	var lines []string
	for _, line := range all {
		if !strings.Contains(line, linkLocal) {
			lines = append(lines, strings.TrimSpace(strings.ReplaceAll(line, " linkdown", "")))
		}
	}
	return lines, err
}

var counters = regexp.MustCompile(`counter packets \d+ bytes \d+`)

func firewall(Scope) ([]string, error) {
	lines, err := command("nft", "list", "ruleset")
	for i, line := range lines {
		lines[i] = counters.ReplaceAllString(line, "counter")
	}
	return lines, err
}

// cgroups lists the directories below the node's own in every hierarchy, the node's own included.
func cgroups(scope Scope) ([]string, error) {
	roots, err := filepath.Glob("/sys/fs/cgroup/*/" + scope.Cgroup)
	if err != nil {
		return nil, err
	}
	roots = append(roots, filepath.Join("/sys/fs/cgroup", scope.Cgroup))
	var lines []string
	for _, root := range roots {
		lines = append(lines, walk(root, func(entry fs.DirEntry) bool { return entry.IsDir() })...)
	}
	return lines, nil
}

// processes lists all that this pid namespace holds but the caller's own short-lived children.
func processes(Scope) ([]string, error) {
	var lines []string
	err := eachProcess(func(pid int) {
		command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || pid == os.Getpid() {
			return
		}
		lines = append(lines, fmt.Sprintf("%d %s", pid, strings.ReplaceAll(strings.TrimRight(string(command), "\x00"), "\x00", " ")))
	})
	return lines, err
}

// files lists the names in the daemon's directories and in the temporary ones. The databases' own growth, the image
// store, which a test may fill on purpose, and what CRIU remembers of the kernel are left out.
func files(scope Scope) ([]string, error) {
	var lines []string
	kept := []string{filepath.Join(scope.Root, "content"), filepath.Join(scope.Root, "layers"), filepath.Join(scope.Run, "criu")}
	for _, root := range append([]string{scope.Run, scope.Root}, scope.Temporary...) {
		lines = append(lines, walk(root, func(fs.DirEntry) bool { return true }, kept...)...)
	}
	return lines, nil
}

var inode = regexp.MustCompile(`\[?\d+\]?`)

// descriptors lists what the daemon has open, by kind and target; numbers of sockets and pipes are left out.
func descriptors(scope Scope) ([]string, error) {
	if scope.Daemon == 0 {
		return nil, nil
	}
	directory := fmt.Sprintf("/proc/%d/fd", scope.Daemon)
	entries, err := os.ReadDir(directory)
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, entry := range entries {
		if target, err := os.Readlink(filepath.Join(directory, entry.Name())); err == nil {
			lines = append(lines, inode.ReplaceAllString(target, "N"))
		}
	}
	return lines, nil
}

// systemV lists shared segments, semaphores and message queues of this ipc namespace.
func systemV(Scope) ([]string, error) {
	var lines []string
	for _, kind := range []string{"shm", "sem", "msg"} {
		text, err := os.ReadFile("/proc/sysvipc/" + kind)
		if err != nil {
			return lines, err
		}
		for _, line := range splitLines(string(text))[1:] {
			fields := strings.Fields(line)
			lines = append(lines, fmt.Sprintf("%s key %s id %s", kind, fields[0], fields[1]))
		}
	}
	return lines, nil
}

func eachProcess(visit func(pid int)) error {
	entries, err := os.ReadDir("/proc")
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil {
			visit(pid)
		}
	}
	return err
}

func walk(root string, wanted func(fs.DirEntry) bool, skipped ...string) []string {
	var lines []string
	_ = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		for _, skip := range skipped {
			if path == skip {
				return fs.SkipDir
			}
		}
		if wanted(entry) {
			lines = append(lines, path)
		}
		return nil
	})
	return lines
}

func command(name string, arguments ...string) ([]string, error) {
	output, err := exec.Command(name, arguments...).Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return splitLines(string(output)), nil
}

func splitLines(text string) []string {
	if text = strings.TrimRight(text, "\n"); text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

func keys(set map[string]bool) []string {
	var list []string
	for key := range set {
		list = append(list, key)
	}
	return list
}
