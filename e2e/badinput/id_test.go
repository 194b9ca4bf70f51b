package badinput

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var unknown = strings.Repeat("0", 64)

func TestIds(t *testing.T) {
	container := map[string]func(*scene, string) error{
		"ContainerStatus": func(s *scene, id string) error {
			_, err := s.Runtime.ContainerStatus(s.ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
			return err
		},
		"StartContainer": func(s *scene, id string) error {
			_, err := s.Runtime.StartContainer(s.ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
			return err
		},
		"ExecSync": func(s *scene, id string) error {
			_, err := s.Runtime.ExecSync(s.ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
			return err
		},
		"ReopenContainerLog": func(s *scene, id string) error {
			_, err := s.Runtime.ReopenContainerLog(s.ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
			return err
		},
		"ContainerStats": func(s *scene, id string) error {
			_, err := s.Runtime.ContainerStats(s.ctx, &runtimeapi.ContainerStatsRequest{ContainerId: id})
			return err
		},
		"CheckpointContainer": func(s *scene, id string) error {
			_, err := s.Runtime.CheckpointContainer(s.ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: s.canary + "/out.tar", Timeout: 5})
			return err
		},
	}
	var rows []row
	for _, rpc := range []string{"ContainerStatus", "StartContainer", "ExecSync", "ReopenContainerLog", "ContainerStats", "CheckpointContainer"} {
		call := container[rpc]
		rows = append(rows,
			row{rpc + " of an unknown id", func(s *scene) error { return call(s, unknown) }, []codes.Code{codes.NotFound}, []string{unknown[:12]}},
			row{rpc + " of an empty id", func(s *scene) error { return call(s, "") }, []codes.Code{codes.InvalidArgument, codes.NotFound}, []string{"container"}},
			row{rpc + " of a path", func(s *scene) error { return call(s, "../../"+s.container.ID) }, []codes.Code{codes.InvalidArgument, codes.NotFound}, nil},
		)
	}
	rows = append(rows,
		row{"PodSandboxStatus of an unknown id", func(s *scene) error {
			_, err := s.Runtime.PodSandboxStatus(s.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: unknown})
			return err
		}, []codes.Code{codes.NotFound}, []string{unknown[:12]}},
		row{"PodSandboxStatus of a container's id", func(s *scene) error {
			_, err := s.Runtime.PodSandboxStatus(s.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.container.ID})
			return err
		}, []codes.Code{codes.NotFound}, nil},
		row{"StopPodSandbox of an empty id", func(s *scene) error {
			_, err := s.Runtime.StopPodSandbox(s.ctx, &runtimeapi.StopPodSandboxRequest{})
			return err
		}, []codes.Code{codes.InvalidArgument, codes.OK}, []string{"sandbox"}},
		row{"RemoveContainer of an empty id", func(s *scene) error {
			_, err := s.Runtime.RemoveContainer(s.ctx, &runtimeapi.RemoveContainerRequest{})
			return err
		}, []codes.Code{codes.InvalidArgument, codes.OK}, []string{"container"}},
		row{"StopContainer with a negative timeout", func(s *scene) error {
			_, err := s.Runtime.StopContainer(s.ctx, &runtimeapi.StopContainerRequest{ContainerId: s.container.ID, Timeout: -3})
			return err
		}, []codes.Code{codes.InvalidArgument}, []string{"timeout", "-3"}},
		row{"ExecSync without a command", func(s *scene) error {
			_, err := s.Runtime.ExecSync(s.ctx, &runtimeapi.ExecSyncRequest{ContainerId: s.container.ID})
			return err
		}, []codes.Code{codes.InvalidArgument}, []string{"cmd"}},
		row{"ExecSync with a negative timeout", func(s *scene) error {
			_, err := s.Runtime.ExecSync(s.ctx, &runtimeapi.ExecSyncRequest{ContainerId: s.container.ID, Cmd: []string{"true"}, Timeout: -1})
			return err
		}, []codes.Code{codes.InvalidArgument}, []string{"timeout"}},
		row{"ExecSync with NUL in the command", func(s *scene) error {
			_, err := s.Runtime.ExecSync(s.ctx, &runtimeapi.ExecSyncRequest{ContainerId: s.container.ID, Cmd: []string{"echo", "a\x00b"}})
			return err
		}, []codes.Code{codes.InvalidArgument}, []string{"cmd"}},
		row{"list filter with an unknown state", func(s *scene) error {
			_, err := s.Runtime.ListContainers(s.ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: 77}}})
			return err
		}, []codes.Code{codes.InvalidArgument, codes.OK}, []string{"state"}},
		row{"list filter that is a path", func(s *scene) error {
			_, err := s.Runtime.ListPodSandbox(s.ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{Id: "../../etc"}})
			return err
		}, []codes.Code{codes.InvalidArgument, codes.OK}, nil},
	)
	run(t, rows)
}
