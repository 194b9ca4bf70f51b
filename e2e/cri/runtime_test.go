package cri

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"meridian.dev/e2e/lab"
)

func TestVersionFillsEveryField(t *testing.T) {
	version, err := lab.Node().Version(lab.Context(t), "v1")
	if err != nil {
		t.Fatal(err)
	}
	if version.RuntimeName != "meridian" || version.RuntimeApiVersion != "v1" || version.RuntimeVersion == "" || version.Version == "" {
		t.Errorf("version = %v", version)
	}
}

func TestStatusIsReadyAndTellsFeatures(t *testing.T) {
	response, err := lab.Node().Status(lab.Context(t), true)
	if err != nil {
		t.Fatal(err)
	}
	ready := map[string]bool{}
	for _, condition := range response.Status.Conditions {
		ready[condition.Type] = condition.Status
	}
	if !ready["RuntimeReady"] || !ready["NetworkReady"] {
		t.Errorf("conditions = %v", response.Status.Conditions)
	}
	handlers := map[string]*runtimeapi.RuntimeHandlerFeatures{}
	for _, handler := range response.RuntimeHandlers {
		handlers[handler.Name] = handler.Features
	}
	for _, name := range []string{"", "meridian"} {
		if features := handlers[name]; features == nil || !features.RecursiveReadOnlyMounts {
			t.Errorf("handler %q: features = %v, want recursive read-only mounts", name, features)
		}
	}
	if len(response.Info) == 0 {
		t.Error("verbose status has no info")
	}
	for key, value := range response.Info {
		if strings.HasPrefix(value, "{") && !json.Valid([]byte(value)) {
			t.Errorf("info %s is not JSON: %s", key, value)
		}
	}
}

func TestRuntimeConfigNamesTheCgroupDriver(t *testing.T) {
	response, err := lab.Node().RuntimeConfig(lab.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	if response.Linux.GetCgroupDriver() != runtimeapi.CgroupDriver_CGROUPFS {
		t.Errorf("cgroup driver = %v", response.Linux)
	}
}

// No RPC is left out.
func TestEveryCallIsThere(t *testing.T) {
	ctx, cancel := context.WithTimeout(lab.Context(t), 10*time.Second)
	defer cancel()
	c := lab.Node().Client
	calls := map[string]func() error{
		"Exec":   func() error { _, err := c.Runtime.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: "x"}); return err },
		"Attach": func() error { _, err := c.Runtime.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: "x"}); return err },
		"PortForward": func() error {
			_, err := c.Runtime.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: "x"})
			return err
		},
		"UpdateContainerResources": func() error {
			_, err := c.Runtime.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: "x"})
			return err
		},
		"UpdatePodSandboxResources": func() error {
			_, err := c.Runtime.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: "x"})
			return err
		},
		"PodSandboxStats": func() error {
			_, err := c.Runtime.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: "x"})
			return err
		},
		"UpdateRuntimeConfig": func() error {
			_, err := c.Runtime.UpdateRuntimeConfig(ctx, &runtimeapi.UpdateRuntimeConfigRequest{})
			return err
		},
		"ListMetricDescriptors": func() error {
			_, err := c.Runtime.ListMetricDescriptors(ctx, &runtimeapi.ListMetricDescriptorsRequest{})
			return err
		},
	}
	for name, call := range calls {
		err := call()
		switch status.Code(err) {
		case codes.Unimplemented, codes.Internal, codes.Unknown:
			t.Errorf("%s: %v", name, err)
		}
	}
}
