{{- define "synod.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $whole := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- default $whole .Values.fullnameOverride | trunc 36 | trimSuffix "-" -}}
{{- end }}

{{- /* app.kubernetes.io/name is left out: KubeRay sets that label on Ray pods, and its head Service selects by it. */}}
{{- define "synod.selector" -}}
app.kubernetes.io/part-of: {{ default .Chart.Name .Values.nameOverride | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "synod.labels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | quote }}
{{ include "synod.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* The image reference of {root, image}, where image is one of .Values.images. */}}
{{- define "synod.image" -}}
{{- $tag := default .root.Chart.AppVersion .image.tag -}}
{{ .image.repository }}{{ hasPrefix "@" $tag | ternary "" ":" }}{{ $tag }}
{{- end }}

{{- /* All groups of scorer pods by name, as JSON: scorers.cpu, scorers.gpu and the environments, which default to those two.
gpus is 0 for a group without GPUs; resource is the Ray resource of an environment. */}}
{{- define "synod.scorerGroups" -}}
{{- $cpu := merge (dict "gpus" 0 "gpuResource" .Values.scorers.gpu.gpuResource "image" .Values.images.scorer) .Values.scorers.cpu -}}
{{- $gpu := merge (dict "image" .Values.images.scorer) .Values.scorers.gpu -}}
{{- $groups := dict "cpu" $cpu "gpu" $gpu -}}
{{- range $name, $own := .Values.environments -}}
{{- $group := gt (int (default 0 $own.gpus)) 0 | ternary $gpu $cpu | deepCopy -}}
{{- $most := hasKey $own "maxReplicas" | ternary $own.maxReplicas 1 -}}
{{- $_ := set $group "resource" $name -}}
{{- $_ := set $group "replicas" 1 -}}
{{- $_ := set $group "minReplicas" (min 1 (int $most)) -}}
{{- include "synod.setAll" (dict "of" $own "in" $group) -}}
{{- $_ := set $groups $name $group -}}
{{- end -}}
{{- toJson $groups -}}
{{- end }}

{{- /* Set every value of the map `of` in the map `in`, map by map. Sprig's merge and mergeOverwrite would not set 0, false,
"" and []. */}}
{{- define "synod.setAll" -}}
{{- range $key, $value := .of -}}
{{- $before := index $.in $key -}}
{{- if and (kindIs "map" $value) (kindIs "map" $before) -}}
{{- include "synod.setAll" (dict "of" $value "in" $before) -}}
{{- else -}}
{{- $_ := set $.in $key $value -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "synod.serviceAccount" -}}
{{ default (.Values.serviceAccount.create | ternary (include "synod.fullname" .) "default") .Values.serviceAccount.name }}
{{- end }}

{{- define "synod.tokensSecret" -}}
{{- if not (or .Values.auth.existingSecret .Values.auth.generate) -}}
{{- fail "the gateways listen on all interfaces and need tokens: name a Secret with tokens.toml and token in auth.existingSecret, or set auth.generate=true" -}}
{{- end -}}
{{ default (printf "%s-tokens" (include "synod.fullname" .)) .Values.auth.existingSecret }}
{{- end }}

{{- define "synod.config" -}}
{{- default (.Files.Get "files/embedded.toml") .Values.config -}}
{{- end }}

{{- define "synod.configPath" -}}
/app/deploy/release/service.toml
{{- end }}

{{- /* The trainer's settings, which may be the service's. */}}
{{- define "synod.trainerConfig" -}}
{{- default (include "synod.config" .) .Values.trainer.config -}}
{{- end }}

{{- define "synod.trainerConfigPath" -}}
{{ empty .Values.trainer.config | ternary (include "synod.configPath" .) "/app/deploy/release/trainer.toml" }}
{{- end }}

{{- /* trainer.command with the settings' path for CONFIG, as a line that a shell splits into the same words. */}}
{{- define "synod.entrypoint" -}}
{{- $words := list -}}
{{- range .Values.trainer.command -}}
{{- $word := eq . "CONFIG" | ternary (include "synod.trainerConfigPath" $) . -}}
{{- if not (regexMatch "^[A-Za-z0-9_@%+=:,./-]+$" $word) -}}
{{- $word = printf "'%s'" (replace "'" `'"'"'` $word) -}}
{{- end -}}
{{- $words = append $words $word -}}
{{- end -}}
{{- join " " $words -}}
{{- end }}

{{- /* The settings of Ray Train that the chart sets, as JSON. */}}
{{- define "synod.trainerRanks" -}}
{{- dict
  "SYNOD__TRAINER__RANKS__WORKERS" (.Values.trainer.workers | int64)
  "SYNOD__TRAINER__RANKS__GPUS" (.Values.trainer.gpus | int64)
  | toJson -}}
{{- end }}

{{- define "synod.rayVersion" -}}
{{ index .Chart.Annotations "synod/ray-version" }}
{{- end }}

{{- define "synod.modelsClaim" -}}
{{ default (printf "%s-models" (include "synod.fullname" .)) .Values.models.cache.existingClaim }}
{{- end }}

{{- define "synod.checkpointsClaim" -}}
{{ default (printf "%s-checkpoints" (include "synod.fullname" .)) .Values.trainer.checkpoints.existingClaim }}
{{- end }}

{{- define "synod.url" -}}
http://{{ include "synod.fullname" . }}.{{ .Release.Namespace }}.svc:{{ .Values.gateway.port }}
{{- end }}

{{- define "synod.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ int64 .Values.pods.user }}
runAsGroup: {{ int64 .Values.pods.user }}
fsGroup: {{ int64 .Values.pods.user }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "synod.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- /* The token with which the release's own pods call the service. */}}
{{- define "synod.tokenVolume" -}}
- name: token
  secret:
    secretName: {{ include "synod.tokensSecret" . | quote }}
    items: [{key: token, path: token}]
{{- end }}

{{- define "synod.tokenMount" -}}
- {name: token, mountPath: /etc/synod/token, readOnly: true}
{{- end }}

{{- define "synod.tokenEnv" -}}
- {name: SYNOD_TOKEN_FILE, value: /etc/synod/token/token}
{{- end }}

{{- /* Settings that the chart sets itself, and .Values.overrides. */}}
{{- define "synod.serviceEnv" -}}
{{- $chart := dict
  "SYNOD__SERVER__HOST" "0.0.0.0"
  "SYNOD__SERVER__LISTEN" "gateway"
  "SYNOD__SERVER__PORT" (.Values.gateway.port | int64 | toString)
  "SYNOD__SERVER__GATEWAY_REPLICAS" (.Values.gateway.replicas | int64 | toString)
  "SYNOD__SERVER__GATEWAY_RESOURCE" "synod_gateway"
  "SYNOD__AUTH__TOKENS_FILE" "/etc/synod/tokens/tokens.toml"
  "SYNOD__AUTH__METRICS" .Values.auth.metrics -}}
{{- if .Values.gateway.grpcPort -}}
{{- $_ := set $chart "SYNOD__SERVER__GRPC_PORT" (.Values.gateway.grpcPort | int64 | toString) -}}
{{- end -}}
{{- range $name, $value := .Values.overrides -}}
{{- if hasKey $chart $name -}}
{{- fail (printf "overrides.%s is set by the chart: use gateway.port, gateway.grpcPort, gateway.replicas or auth instead" $name) -}}
{{- end -}}
{{- if not (hasPrefix "SYNOD__" $name) -}}
{{- fail (printf "overrides.%s: a setting's name starts with SYNOD__; use pods.extraEnv for other variables" $name) -}}
{{- end -}}
{{- $_ := set $chart $name (toString $value) -}}
{{- end -}}
{{- toYaml $chart -}}
{{- end }}
