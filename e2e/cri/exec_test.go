package cri

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

func execSync(t *testing.T, c *lab.Container, timeout int64, command ...string) (*runtimeapi.ExecSyncResponse, error) {
	t.Helper()
	return lab.Node().Runtime.ExecSync(lab.Context(t), &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: command, Timeout: timeout})
}

func TestExecSyncReturnsOutputAndCode(t *testing.T) {
	p := pod(t)
	c := p.Run("main", sleeper, func(c *runtimeapi.ContainerConfig) {
		c.Envs = []*runtimeapi.KeyValue{{Key: "WORD", Value: []byte("w")}}
		c.WorkingDir = "/var"
	})
	got, err := execSync(t, c, 10, "/bin/sh", "-c", "echo out $WORD $(pwd); echo err >&2; exit 5")
	if err != nil {
		t.Fatal(err)
	}
	if string(got.Stdout) != "out w /var\n" || string(got.Stderr) != "err\n" || got.ExitCode != 5 {
		t.Errorf("stdout %q stderr %q code %d", got.Stdout, got.Stderr, got.ExitCode)
	}
	got, err = execSync(t, c, 10, "sh", "-c", "kill -9 $$")
	if err != nil || got.ExitCode != 137 {
		t.Errorf("killed: %v, %v", got, err)
	}
	got, err = execSync(t, c, 10, "id", "-u")
	if err != nil || string(got.Stdout) != "0\n" {
		t.Errorf("a program found by PATH: %v, %v", got, err)
	}
}

func TestExecSyncTimeoutKills(t *testing.T) {
	p := pod(t)
	c := p.Run("main", sleeper)
	for _, command := range []string{"exec sleep 4321", "sleep 20 & sleep 20"} { // the second leaves a child with the pipes
		began := time.Now()
		_, err := execSync(t, c, 1, "sh", "-c", command)
		wantCode(t, command, err, codes.DeadlineExceeded)
		if took := time.Since(began); took < time.Second || took > 3*time.Second {
			t.Errorf("%s: took %s, want 1 s", command, took)
		}
	}
	eventually(t, "no process of the exec left", func() bool {
		return !slices.Contains(strings.Split(c.Sh("ps -o args"), "\n"), "sleep 4321")
	})
	if state := c.Status().State; state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %s after an exec timed out", state)
	}
}

func TestExecSyncCapsOutput(t *testing.T) {
	const limit = 16 << 20
	p := pod(t)
	c := p.Run("main", sleeper)
	got, err := lab.Node().Runtime.ExecSync(lab.Context(t), &runtimeapi.ExecSyncRequest{
		ContainerId: c.ID, Cmd: []string{"sh", "-c", "head -c 20000000 /dev/zero | tr '\\0' a; echo end >&2"}, Timeout: 60,
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Stdout) > limit || len(got.Stdout) < limit-4096 || got.ExitCode != 0 {
		t.Errorf("stdout has %d bytes, code %d; want %d", len(got.Stdout), got.ExitCode, limit)
	}
	if !bytes.Equal(got.Stderr, []byte("end\n")) {
		t.Errorf("stderr = %q", got.Stderr)
	}
}

// A probe may leave a child that holds the pipe open; the call ends with the probe itself.
func TestExecSyncDoesNotWaitForInheritedPipes(t *testing.T) {
	p := pod(t)
	c := p.Run("main", sleeper)
	began := time.Now()
	got, err := execSync(t, c, 30, "sh", "-c", "sleep 20 & echo done")
	if err != nil || string(got.Stdout) != "done\n" {
		t.Fatalf("%v, %v", got, err)
	}
	if took := time.Since(began); took > 12*time.Second {
		t.Errorf("took %s", took)
	}
	c.Sh("pkill sleep; killall sleep; true")
}

func TestExecSyncErrors(t *testing.T) {
	p := pod(t)
	c := p.Run("main", sleeper)
	if got, err := execSync(t, c, 5, "/no/such/program"); err == nil && got.ExitCode == 0 || err != nil && !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("missing program: %v, %v", got, err)
	}
	created := p.Create("created", sleeper)
	_, err := execSync(t, created, 5, "true")
	wantCode(t, "exec in a container that was not started", err, codes.FailedPrecondition, created.ID[:12])
	exited := p.Run("exited", "exit 0")
	exited.Wait()
	_, err = execSync(t, exited, 5, "true")
	wantCode(t, "exec in an exited container", err, codes.FailedPrecondition, exited.ID[:12])
}

func TestManyExecsAtOnce(t *testing.T) {
	p := pod(t)
	c := p.Run("main", sleeper)
	results := make(chan error)
	const count = 40
	ctx := lab.Context(t)
	for range count {
		go func() {
			_, _, err := lab.Node().ExecSync(ctx, c.ID, []string{"sh", "-c", "echo x"}, 20*time.Second)
			results <- err
		}()
	}
	for range count {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}
