{{- /* The settings as the service will read them, as JSON: the TOML with .Values.overrides applied. */}}
{{- define "synod.settings" -}}
{{- $settings := include "synod.config" . | fromToml -}}
{{- if hasKey $settings "Error" -}}
{{- fail (printf "config is not valid TOML: %s" $settings.Error) -}}
{{- end -}}
{{- range $name, $value := .Values.overrides -}}
{{- $read := printf "value = %v" $value | fromToml -}}
{{- $tree := hasKey $read "Error" | ternary $value $read.value -}}
{{- range $key := trimPrefix "SYNOD__" $name | lower | splitList "__" | reverse -}}
{{- $tree = dict $key $tree -}}
{{- end -}}
{{- include "synod.setAll" (dict "of" $tree "in" $settings) -}}
{{- end -}}
{{- toJson $settings -}}
{{- end }}

{{- /* Fail if Kubernetes would refuse the objects' names: a Service's and a RayService's are DNS-1035 labels. */}}
{{- define "synod.checkNames" -}}
{{- $name := include "synod.fullname" . -}}
{{- $label := "^[a-z]([-a-z0-9]*[a-z0-9])?$" -}}
{{- $rule := "a Kubernetes Service's name has lower-case letters, digits and '-' only, starts with a letter and ends with a letter or digit" -}}
{{- if not (regexMatch $label $name) -}}
{{- $from := printf "release name '%s' and nameOverride '%s' give" .Release.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- $from = printf "fullnameOverride '%s' gives" .Values.fullnameOverride -}}
{{- end -}}
{{- fail (printf "%s the objects the name '%s', but %s: set fullnameOverride to a valid name of at most 36 characters, or choose another release name" $from $name $rule) -}}
{{- end -}}
{{- if and .Values.nameOverride (not (regexMatch "^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$" .Values.nameOverride)) -}}
{{- fail (printf "nameOverride '%s' is also a label, which has at most 63 letters, digits, '-', '_' and '.', and starts and ends with a letter or digit: choose a valid value" .Values.nameOverride) -}}
{{- end -}}
{{- end }}

{{- /* Fail if Ray uses one of the gateway's ports in its pod. */}}
{{- define "synod.checkPorts" -}}
{{- $port := int .Values.gateway.port -}}
{{- $grpc := int .Values.gateway.grpcPort -}}
{{- if eq $port $grpc -}}
{{- fail (printf "gateway.port and gateway.grpcPort are both %d: choose two different ports" $port) -}}
{{- end -}}
{{- range $field, $one := dict "port" $port "grpcPort" $grpc -}}
{{- if or (has $one (list 8080 52365)) (and (ge $one 10002) (le $one 19999)) -}}
{{- fail (printf "gateway.%s is %d, a port that Ray uses in the gateway's pod: choose one other than 8080, 52365 and 10002 to 19999" $field $one) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- /* Fail if the service's settings contradict what the chart sets. */}}
{{- define "synod.checkSettings" -}}
{{- $settings := include "synod.settings" . | fromJson -}}
{{- $auth := dig "auth" dict $settings -}}
{{- if hasKey $auth "tokens_env" -}}
{{- fail (printf "[auth] tokens_env is '%v' in config or overrides, but the chart sets tokens_file, and a service has one source of tokens: remove tokens_env, and name a Secret with the tokens in auth.existingSecret" $auth.tokens_env) -}}
{{- end -}}
{{- $grpc := dig "server" "grpc_port" 0 $settings | int -}}
{{- if and $grpc (not .Values.gateway.grpcPort) -}}
{{- fail (printf "[server] grpc_port is %d in config or overrides, but gateway.grpcPort = 0 turns gRPC off: remove grpc_port, or set gateway.grpcPort=%d" $grpc $grpc) -}}
{{- end -}}
{{- end }}

{{- /* Fail if the scorers' pods can never hold all replicas: compare the most that [scorers.*.serving] can ask for with the
most that the groups can have. A sum that fits may still not pack, because a share of a GPU cannot span two GPUs. */}}
{{- define "synod.checkCapacity" -}}
{{- $auto := .Values.autoscaling.enabled -}}
{{- $gpu := .Values.scorers.gpu -}}
{{- $field := $auto | ternary "maxReplicas" "replicas" -}}
{{- $gpus := 0 -}}
{{- $cpus := 0 -}}
{{- $groups := include "synod.scorerGroups" . | fromJson -}}
{{- range $groups -}}
{{- $gpus = add $gpus (mul .gpus (index . $field)) -}}
{{- $cpus = add $cpus (mul .logicalCpus (index . $field)) -}}
{{- end -}}
{{- $asked := dict "num_cpus" 0.0 "num_gpus" 0.0 -}}
{{- range $name, $scorer := (include "synod.settings" . | fromJson).scorers -}}
{{- if not $scorer.kind -}}
{{- fail (printf "overrides.SYNOD__SCORERS__%s__...: config has no [scorers.%s]; remove the override" (upper $name) $name) -}}
{{- end -}}
{{- $serving := default dict $scorer.serving -}}
{{- if not $serving.colocate_with -}}
{{- $most := dig "max_replicas" (dig "replicas" 1 $serving) $serving -}}
{{- $share := dig "num_gpus" 0 $serving -}}
{{- $group := $gpu -}}
{{- if $serving.resource -}}
{{- if not (dig $serving.resource "resource" "" $groups) -}}
{{- fail (printf "scorer '%s' has resource = '%s', which is not in environments (%s): add it there or correct the name" $name $serving.resource (keys $.Values.environments | sortAlpha | join ", " | default "there are none")) -}}
{{- end -}}
{{- $group = index $groups $serving.resource -}}
{{- if gt (float64 $share) (float64 $group.gpus) -}}
{{- fail (printf "a replica of scorer '%s' asks for num_gpus = %v, but a pod has environments.%s.gpus = %v: raise the latter or lower the former" $name $share $serving.resource $group.gpus) -}}
{{- end -}}
{{- end -}}
{{- if gt (float64 $share) (float64 $group.gpus) -}}
{{- fail (printf "a replica of scorer '%s' asks for num_gpus = %v, but a pod has scorers.gpu.gpus = %v: raise the latter or lower the former" $name $share $gpu.gpus) -}}
{{- end -}}
{{- $_ := set $asked "num_gpus" (addf $asked.num_gpus (mulf $most $share)) -}}
{{- $_ := set $asked "num_cpus" (addf $asked.num_cpus (mulf $most (dig "num_cpus" 0.1 $serving))) -}}
{{- else if hasKey $serving "num_gpus" -}}
{{- fail (printf "scorer '%s' is co-located with '%s', whose settings decide the resources of the replica: remove num_gpus (a profile's overrides by --set overrides=null)" $name $serving.colocate_with) -}}
{{- end -}}
{{- end -}}
{{- if gt $asked.num_gpus (float64 $gpus) -}}
{{- fail (printf "the scorers' replicas (max_replicas if set) may ask for %v GPUs, but the pods have %v (scorers.gpu.%s = %v, each with scorers.gpu.gpus = %v): raise scorers.gpu.%s, or lower replicas, max_replicas or num_gpus of [scorers.*.serving]" $asked.num_gpus $gpus $field (index $gpu $field) $gpu.gpus $field) -}}
{{- end -}}
{{- if gt $asked.num_cpus (float64 $cpus) -}}
{{- fail (printf "the scorers' replicas (max_replicas if set) may ask for %v CPUs, but the pods have %v (scorers.cpu and scorers.gpu, %s times logicalCpus): raise those, or lower replicas, max_replicas or num_cpus of [scorers.*.serving]" $asked.num_cpus $cpus $field) -}}
{{- end -}}
{{- end }}

{{- /* Fail if the trainer's command cannot succeed: nothing reads its settings, or they are not TOML with the
tables that it reads; or if an evaluation has no place for its results. */}}
{{- define "synod.checkTrainer" -}}
{{- $command := toJson .Values.trainer.command -}}
{{- $reads := has "CONFIG" .Values.trainer.command -}}
{{- $settings := include "synod.trainerConfig" . | fromToml -}}
{{- $own := not (empty .Values.trainer.config) -}}
{{- if and $own (not $reads) -}}
{{- fail (printf "trainer.config is set, but trainer.command %s does not read it: add the word CONFIG, which stands for its path, or remove trainer.config" $command) -}}
{{- end -}}
{{- if and $own (hasKey $settings "Error") -}}
{{- fail (printf "trainer.config is not valid TOML: %s" $settings.Error) -}}
{{- end -}}
{{- if and $reads (not (kindIs "map" $settings.trainer)) -}}
{{- fail (printf "trainer.command %s reads %s, which has no [trainer] table: add one, or set trainer.config to a TOML that has one" $command ($own | ternary "trainer.config" "config")) -}}
{{- end -}}
{{- if and $reads (regexMatch "^synod personalize( |$)" (join " " .Values.trainer.command)) (not (kindIs "map" $settings.personalize)) -}}
{{- fail (printf "trainer.command %s reads %s, which has no [personalize] table: set trainer.config to a TOML that has one, such as deploy/configs/personalize.toml" $command ($own | ternary "trainer.config" "config")) -}}
{{- end -}}
{{- if regexMatch "^synod evaluate( |$)" (join " " .Values.trainer.command) -}}
{{- if not (regexMatch "(^| |=)(CONFIG|/[^ ]+)( |$)" (join " " .Values.trainer.command)) -}}
{{- fail (printf "trainer.command %s has no place for its images and scores, because the pod's root file system is read-only: add --out=/checkpoints/NAME, or evaluate CONFIG or a run below /checkpoints" $command) -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := dict "TRAINER__RUN_DIR" "run" "PERSONALIZE__RUN_DIR" "run" "TRAINER__RANKS__WORKERS" "workers" "TRAINER__RANKS__GPUS" "gpus" -}}
{{- if hasKey $.Values.trainer.overrides (printf "SYNOD__%s" $name) -}}
{{- fail (printf "trainer.overrides.SYNOD__%s is set by the chart: use trainer.%s instead" $name $value) -}}
{{- end -}}
{{- end -}}
{{- include "synod.checkWorkers" . -}}
{{- end }}

{{- /* Fail if the workers' pods cannot hold the workers, or cannot share the run. */}}
{{- define "synod.checkWorkers" -}}
{{- $trainer := .Values.trainer -}}
{{- $workers := int $trainer.workers -}}
{{- $pods := int $trainer.pods -}}
{{- if mod $workers $pods -}}
{{- fail (printf "trainer.workers = %d cannot be shared equally by trainer.pods = %d: make one a multiple of the other" $workers $pods) -}}
{{- end -}}
{{- if and (eq $workers 0) (gt $pods 1) -}}
{{- fail (printf "trainer.pods = %d, but without workers one process trains in one pod: set trainer.workers to the number of GPUs of all pods, or trainer.pods=1" $pods) -}}
{{- end -}}
{{- if has "CONFIG" $trainer.command -}}
{{- $set := dig "trainer" "ranks" "workers" $workers (include "synod.trainerConfig" . | fromToml) | int -}}
{{- if ne $set $workers -}}
{{- fail (printf "[trainer.ranks] workers = %d in the trainer's settings, but the pods are made for trainer.workers = %d: set trainer.workers=%d, or remove the line" $set $workers $set) -}}
{{- end -}}
{{- end -}}
{{- if and $workers (regexMatch "^synod (evaluate|personalize)( |$)" (join " " $trainer.command)) -}}
{{- fail (printf "trainer.workers = %d, but trainer.command %s is one process: set trainer.workers=0 and trainer.pods=1" $workers (toJson $trainer.command)) -}}
{{- end -}}
{{- $checkpoints := $trainer.checkpoints -}}
{{- if and (gt $pods 1) (not $checkpoints.existingClaim) (not (has "ReadWriteMany" $checkpoints.accessModes)) -}}
{{- fail (printf "trainer.pods = %d share the checkpoints, but trainer.checkpoints.accessModes = %s let one node mount them: set it to [ReadWriteMany] with a trainer.checkpoints.storageClass that has it (NFS, CephFS, EFS, Filestore), name a trainer.checkpoints.existingClaim, or use the GPUs of one node with trainer.pods=1" $pods (toJson $checkpoints.accessModes)) -}}
{{- end -}}
{{- end }}
