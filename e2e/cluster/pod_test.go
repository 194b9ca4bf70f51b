package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"meridian.dev/e2e/lab"
)

// check is a shell command line in a container, and what it must print: all of it, or "...part".
type check struct{ where, script, want string }

func verify(t *testing.T, node string, checks []check) {
	t.Helper()
	for _, c := range checks {
		where, container, _ := strings.Cut(c.where, "/")
		arguments := []string{"exec", where + "-" + node, "--", "sh", "-c", c.script}
		if container != "" {
			arguments = []string{"exec", where + "-" + node, "-c", container, "--", "sh", "-c", c.script}
		}
		output, err := cluster.Kubectl(lab.Context(t), arguments...)
		output = strings.TrimRight(output, "\n")
		part, partial := strings.CutPrefix(c.want, "...")
		if err != nil {
			t.Errorf("%s: %s: %v", c.where, c.script, err)
		} else if output != c.want && (!partial || !strings.Contains(output, part)) {
			t.Errorf("%s: %s: %q, want %q", c.where, c.script, output, c.want)
		}
	}
}

func TestVolumes(t *testing.T) {
	onEach(t, func(t *testing.T, node string) {
		scratch := apply(t, "volumes.yaml", node)
		waitFor(t, "condition=Ready", "pod/volumes-"+node)
		verify(t, node, []check{
			{"volumes/shell", "echo shared >/disk/file; stat -c %g /disk", "4242"},
			{"volumes/other", "cat /disk/file", "shared"},
			{"volumes/other", "touch /disk/x 2>&1 || true", "...Read-only file system"},
			{"volumes/shell", "ls -d /disk/part /disk/of-here; touch /part/a /named/b; ls /disk/part /disk/of-here", "/disk/of-here\n/disk/part\n/disk/of-here:\nb\n\n/disk/part:\na"},
			{"volumes/shell", "grep ' /memory ' /proc/mounts", "...tmpfs"},
			{"volumes/shell", "df -k /memory | tail -1 | awk '{print $2}'", "8192"},
			{"volumes/shell", "cat /settings/greeting; echo; cat /etc/nested.conf", "hello\na=1"},
			{"volumes/shell", "cat /password/password; stat -L -c ' %a' /password/password", "open sesame 440"},
			{"volumes/shell", "echo written >/host/file", ""},
			{"volumes/shell", "cat /image/data/replaced /kept/both; touch /image/x 2>&1 || true", "...Read-only file system"},
			{"volumes/shell", "cat /projected/words/greeting; cat /projected/password; cat /projected/labels; echo; cat /projected/cpu", "helloopen sesamecolour=\"green\"\n250"},
			{"volumes/shell", "wc -c </projected/token | awk '{print ($1 > 500)}'", "1"},
			{"volumes/shell", "echo $NOTE $MEMORY $GREETING $PASSWORD; test $POD_IP = $(hostname -i | cut -d' ' -f1) && echo own", "here 67108864 hello open sesame\nown"},
			{"volumes/shell", "ls /var/run/secrets/kubernetes.io/serviceaccount", "ca.crt\nnamespace\ntoken"},
		})
		if text, err := os.ReadFile(filepath.Join(scratch, "volumes-"+node, "file")); err != nil || string(text) != "written\n" {
			t.Errorf("hostPath: %q, %v", text, err)
		}
		// A changed ConfigMap arrives in the running pod; that takes the kubelet up to a minute, so it is asked to look.
		call(t, "patch", "configmap", "settings-"+node, "-p", `{"data":{"greeting":"good morning"}}`)
		call(t, "annotate", "pod", "volumes-"+node, "--overwrite", "note=changed")
		becomes(t, "good morning", "exec", "volumes-"+node, "-c", "shell", "--", "cat", "/settings/greeting")
	})
}

func TestResources(t *testing.T) {
	onEach(t, func(t *testing.T, node string) {
		apply(t, "resources.yaml", node)
		pod := "resources-" + node
		waitFor(t, "condition=Ready", "pod/"+pod, "pod/guaranteed-"+node)
		equal(t, "QoS", field(t, "pod/"+pod, ".status.qosClass"), "Burstable")
		equal(t, "QoS", field(t, "pod/guaranteed-"+node, ".status.qosClass"), "Guaranteed")
		verify(t, node, []check{{"resources", "cat /proc/1/oom_score_adj", "999"}})
		equal(t, "limits", limits(t, node, pod), "67108864 20000")
		call(t, "patch", "pod", pod, "--subresource=resize", "-p",
			`{"spec":{"containers":[{"name":"shell","resources":{"requests":{"cpu":"150m"},"limits":{"cpu":"300m","memory":"128Mi"}}}]}}`)
		becomes(t, "128Mi 300m", "get", "pod", pod, "-o", status("shell", ".resources.limits.memory")+" "+"{.status.containerStatuses[0].resources.limits.cpu}")
		equal(t, "limits after the resize", limits(t, node, pod), "134217728 30000")
		equal(t, "restarts", call(t, "get", "pod", pod, "-o", status("shell", ".restartCount")), "0")

		waitFor(t, "jsonpath={.status.phase}=Failed", "pod/greedy-"+node)
		equal(t, "reason", call(t, "get", "pod", "greedy-"+node, "-o", status("greedy", ".state.terminated.reason")), "OOMKilled")
		equal(t, "exit code", call(t, "get", "pod", "greedy-"+node, "-o", status("greedy", ".state.terminated.exitCode")), "137")
		figures(t, node, pod)
	})
}

// limits reads a container's memory limit and cpu quota from its cgroup, on version 1 or 2.
func limits(t *testing.T, node, pod string) string {
	t.Helper()
	id := strings.TrimPrefix(call(t, "get", "pod", pod, "-o", status("shell", ".containerID")), "meridian://")
	parent := filepath.Join(cluster.Node(node).Cgroup, "kubepods/burstable/pod"+field(t, "pod/"+pod, ".metadata.uid"))
	var found []string
	for _, pattern := range []string{"memory/%s/*/%s/memory.limit_in_bytes", "cpu/%s/*/%s/cpu.cfs_quota_us", "%s/*/%s/memory.max", "%s/*/%s/cpu.max"} {
		paths, _ := filepath.Glob("/sys/fs/cgroup/" + fmt.Sprintf(pattern, parent, id))
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, strings.Fields(string(text))[0])
		}
	}
	return strings.Join(found, " ")
}

// figures reads what the kubelet tells of a pod: on node b all of it by CRI.
func figures(t *testing.T, node, pod string) {
	t.Helper()
	type summary struct {
		Pods []struct {
			PodRef  struct{ Name string }
			CPU     struct{ UsageCoreNanoSeconds uint64 }
			Memory  struct{ WorkingSetBytes uint64 }
			Network *struct{ RxBytes uint64 }
		}
	}
	for deadline := time.Now().Add(45 * time.Second); ; time.Sleep(time.Second) {
		var s summary
		if err := json.Unmarshal([]byte(call(t, "get", "--raw", "/api/v1/nodes/"+node+"/proxy/stats/summary")), &s); err != nil {
			t.Fatal(err)
		}
		for _, p := range s.Pods {
			if p.PodRef.Name == pod && p.CPU.UsageCoreNanoSeconds > 0 && p.Memory.WorkingSetBytes > 0 && (node == "a" || p.Network != nil) {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("no figures of pod %s: %+v", pod, s)
		}
	}
}

func TestSecurity(t *testing.T) {
	onEach(t, func(t *testing.T, node string) {
		apply(t, "security.yaml", node)
		waitFor(t, "condition=Ready", "pod/userns-"+node, "pod/restricted-"+node, "pod/host-"+node, "pod/shared-"+node, "pod/class-"+node)
		address := cluster.Node(node).Address
		verify(t, node, []check{
			{"userns", "awk '{print $1, ($2 > 65535), $3}' /proc/self/uid_map", "0 1 65536"},
			{"userns", "id -u; touch /disk/file && stat -c %u /disk/file; test -s /token/token && echo token", "0\n0\ntoken"},
			{"restricted", "id -u; id -g; id -G", "1000\n3000\n3000 4000 50000"},
			{"restricted", "touch /tmp/x 2>&1 || true", "...Read-only file system"},
			{"restricted", "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status | tr -d '\\t'", "CapEff:0000000000000000\nNoNewPrivs:1\nSeccomp:2"},
			{"restricted", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "80"},
			{"host", "ip -4 -o addr | grep -c " + address + "/24", "1"},
			{"host", "tr '\\0' ' ' </proc/1/cmdline; ps | grep -c '[k]ubelet --config'", "...1"},
			{"shared/shell", "ps | grep -c '[s]leep 3601'", "1"},
			{"shared/shell", "hostname; cat /etc/resolv.conf; grep -c alias.example /etc/hosts", "told\nsearch search.example\nnameserver 192.0.2.53\noptions ndots:3\n1"},
			{"class", "echo runs", "runs"},
		})
		events := []string{"get", "events", "--field-selector", "involvedObject.name=classless-" + node, "-o", "jsonpath={.items[*].message}"}
		becomes(t, "nobody", events...)
	})
}

// The kubelet's own checkpoint endpoint: an archive on the node, and the container goes on.
func TestCheckpointEndpoint(t *testing.T) {
	onEach(t, func(t *testing.T, node string) {
		apply(t, "checkpoint.yaml", node)
		pod := "captured-" + node
		waitFor(t, "condition=Ready", "pod/"+pod)
		call(t, "create", "--raw", fmt.Sprintf("/api/v1/nodes/%s/proxy/checkpoint/default/%s/web", node, pod), "-f", "/dev/null")
		archives, _ := filepath.Glob(filepath.Join(cluster.Node(node).Dir, "kubelet/checkpoints/checkpoint-"+pod+"_default-web-*.tar"))
		if len(archives) != 1 {
			t.Fatalf("archives: %v", archives)
		}
		if output, err := runTool("checkpointctl", "show", archives[0]); err != nil {
			t.Error(err)
		} else {
			wants(t, "checkpointctl show", output, "web", "clockwork:1")
		}
		wants(t, "the container after it", sh(t, pod, "wget -q -O - http://127.0.0.1:8080"), "monotonic")
		if _, err := cluster.Kubectl(context.Background(), "create", "--raw", fmt.Sprintf("/api/v1/nodes/%s/proxy/checkpoint/default/%s/nobody", node, pod), "-f", "/dev/null"); err == nil {
			t.Error("a checkpoint of no container succeeded")
		}
	})
}
